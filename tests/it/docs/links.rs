//! Every link leads somewhere.

use super::markdown::{Page, pages, root};

#[test]
fn links_lead_somewhere() {
    let all = pages();
    let wrong: Vec<String> = all
        .iter()
        .flat_map(|page| {
            let bad = |target: &String| why_not(&all, page, target);
            page.links().into_iter().filter_map(move |target| {
                let why = bad(&target)?;
                Some(format!("{}: {target}: {why}", page.name))
            })
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let seen: usize = all.iter().map(|page| page.links().len()).sum();
    assert!(seen > 200, "only {seen} links were found: the test has gone blind");
}

/// What is wrong with a link.
fn why_not(all: &[Page], page: &Page, target: &str) -> Option<&'static str> {
    if target.starts_with("https://") || target.starts_with("http://") {
        return None;
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let here = root().join(&page.name);
    let there = match path {
        "" => here,
        path => here.parent().unwrap().join(path),
    };
    let Ok(there) = there.canonicalize() else { return Some("there is nothing") };
    if anchor.is_empty() {
        return None;
    }
    let of = all.iter().find(|p| root().join(&p.name).canonicalize().is_ok_and(|p| p == there));
    match of {
        Some(of) if of.anchors().iter().any(|name| name == anchor) => None,
        _ => Some("there is no such heading"),
    }
}
