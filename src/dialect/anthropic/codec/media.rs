//! What the bytes of media are, and which of them Messages takes.

use base64::{Engine, engine::general_purpose::STANDARD};

/// The media types of images that the vendor takes.
pub const IMAGES: [&str; 4] = ["image/jpeg", "image/png", "image/gif", "image/webp"];

/// The media type by the first bytes of a text in base64: of the four kinds of images, and PDF.
pub fn sniffed(base64: &str) -> Option<&'static str> {
    // 16 characters are 12 bytes, enough for all of them.
    let head = STANDARD.decode(base64.get(..16)?).ok()?;
    match &head[..] {
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => Some("image/webp"),
        [b'%', b'P', b'D', b'F', ..] => Some("application/pdf"),
        _ => None,
    }
}

/// The media type to be told, by what the client said and by the bytes. A type that says nothing
/// counts as none; parameters are left out.
pub fn told(said: Option<&str>, base64: &str) -> Option<String> {
    let plain = said.map(|said| said.split(';').next().unwrap_or_default().trim());
    match plain.map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "application/octet-stream" | "image/*" | "binary/octet-stream") => {
            sniffed(base64).map(str::to_owned)
        }
        Some("image/jpg" | "image/pjpeg") => Some("image/jpeg".to_owned()),
        Some("application/x-pdf") => Some("application/pdf".to_owned()),
        Some(known) => Some(known.to_owned()),
    }
}

/// The type is of a text that can be read as it is.
pub fn is_text(mime: &str) -> bool {
    let known = ["json", "xml", "yaml", "x-yaml", "toml", "javascript", "x-sh", "sql", "csv"];
    mime.starts_with("text/")
        || mime.strip_prefix("application/").is_some_and(|kind| {
            known.contains(&kind) || kind.ends_with("+json") || kind.ends_with("+xml")
        })
}

/// The text that is in base64, if it is UTF-8.
pub fn text(base64: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(base64).ok()?).ok()
}

/// The media type and the bytes of a `data:` URL in base64.
pub fn data_url(url: &str) -> Option<(Option<&str>, &str)> {
    let (head, data) = url.strip_prefix("data:")?.split_once(',')?;
    let mime = head.strip_suffix(";base64")?;
    Some(((!mime.is_empty()).then_some(mime), data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_tell_the_type_where_none_is_said() {
        let encoded = |bytes: &[u8]| {
            let mut all = bytes.to_vec();
            all.resize(24, 0);
            STANDARD.encode(all)
        };
        for (bytes, mime) in [
            (&b"\xff\xd8\xff\xe0"[..], Some("image/jpeg")),
            (b"\x89PNG\r\n\x1a\n", Some("image/png")),
            (b"GIF89a", Some("image/gif")),
            (b"RIFF\0\0\0\0WEBP", Some("image/webp")),
            (b"RIFF\0\0\0\0WAVE", None),
            (b"%PDF-1.7", Some("application/pdf")),
            (b"BM", None),
        ] {
            assert_eq!(told(None, &encoded(bytes)).as_deref(), mime, "{bytes:?}");
            assert_eq!(told(Some("image/*"), &encoded(bytes)).as_deref(), mime);
        }
        assert_eq!(told(None, "AA"), None);
        assert_eq!(told(Some("IMAGE/JPG"), "AA").as_deref(), Some("image/jpeg"));
        assert_eq!(told(Some("image/bmp"), "AA").as_deref(), Some("image/bmp"));
    }

    #[test]
    fn data_urls_are_opened() {
        assert_eq!(data_url("data:image/png;base64,AAA="), Some((Some("image/png"), "AAA=")));
        assert_eq!(data_url("data:;base64,AAA="), Some((None, "AAA=")));
        assert_eq!(data_url("data:text/plain,hello"), None);
        assert_eq!(data_url("https://example.com/"), None);
    }

    #[test]
    fn texts_are_known_by_their_type() {
        for mime in ["text/plain", "text/x-rust", "application/json", "application/ld+json"] {
            assert!(is_text(mime), "{mime}");
        }
        for mime in ["application/pdf", "image/png", "application/zip"] {
            assert!(!is_text(mime), "{mime}");
        }
        assert_eq!(text("w7w=").as_deref(), Some("ü"));
        assert_eq!(text("/w=="), None);
    }
}
