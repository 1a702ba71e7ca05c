//! Blocks of a page that the benchmark fills: `<!-- bench:NAME -->` to `<!-- /bench -->`.

const END: &str = "<!-- /bench -->";

/// The page with another text in the block `name`.
///
/// # Errors
/// If the page has no such block, or the block has no end.
pub fn replace(page: &str, name: &str, text: &str) -> Result<String, String> {
    let start = format!("<!-- bench:{name} -->");
    let (before, rest) =
        page.split_once(&start).ok_or_else(|| format!("there is no block {start}"))?;
    let (old, after) = rest.split_once(END).ok_or_else(|| format!("{start} has no {END}"))?;
    if old.contains("<!-- bench:") {
        return Err(format!("{start} has no {END}"));
    }
    Ok(format!("{before}{start}\n{}\n{END}{after}", text.trim_end()))
}
