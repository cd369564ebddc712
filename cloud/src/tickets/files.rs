//! Files of a ticket: which are taken, and what they are called.
//!
//! What a file is shows in its content. A few types are taken; everything else is refused, above all what a browser runs (HTML, SVG,
//! scripts) and what has other files in it (archives, office documents). Its name is somebody else's word: of it is kept what is
//! harmless as a file's name on any system, with an extension of the type that was found.

use sha2::{Digest as _, Sha256};

/// The longest name that is kept, in characters.
pub const NAME_CHARS_MAX: usize = 120;
/// The longest name that is read, in characters.
pub const GIVEN_NAME_CHARS_MAX: usize = 255;

/// A type that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    Png,
    Jpeg,
    Webp,
    Pdf,
    Csv,
    Text,
}

impl MediaType {
    pub const ALL: [Self; 6] = [Self::Png, Self::Jpeg, Self::Webp, Self::Pdf, Self::Csv, Self::Text];
    /// Those that begin with bytes of their own.
    const BINARY: [Self; 4] = [Self::Png, Self::Jpeg, Self::Webp, Self::Pdf];

    /// As `Content-Type` and the database spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
            Self::Pdf => "application/pdf",
            Self::Csv => "text/csv",
            Self::Text => "text/plain",
        }
    }

    /// The extensions that such a file may have; the first is given to one without.
    const fn extensions(self) -> &'static [&'static str] {
        match self {
            Self::Png => &["png"],
            Self::Jpeg => &["jpg", "jpeg"],
            Self::Webp => &["webp"],
            Self::Pdf => &["pdf"],
            Self::Csv => &["csv"],
            Self::Text => &["txt", "log", "md"],
        }
    }
}

/// Why a file is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefusedFile {
    #[error("the file is empty")]
    Empty,
    #[error("this is no PNG, JPEG, WebP, PDF or plain text (UTF-8), whatever its name says")]
    NotTaken,
    #[error("the content is {}, and not what Content-Type says", .0.as_str())]
    Another(MediaType),
}

/// What a file is, by its content; `declared` is what whoever sends it says it is (`Content-Type`), if they know.
///
/// # Errors
/// If such files are not taken, or it is another than was said.
pub fn media_type(content: &[u8], declared: Option<&str>) -> Result<MediaType, RefusedFile> {
    if content.is_empty() {
        return Err(RefusedFile::Empty);
    }
    let declared = declared.map(|text| text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    let declared = declared.as_deref().filter(|kind| !matches!(*kind, "" | "application/octet-stream"));
    // Text may begin with letters that some binary format begins with too.
    let magic = infer::get(content)
        .and_then(|kind| MediaType::BINARY.into_iter().find(|known| known.as_str() == kind.mime_type()));
    let text =
        || is_text(content).then_some(if declared == Some("text/csv") { MediaType::Csv } else { MediaType::Text });
    let found = magic.or_else(text);
    let found = found.ok_or(RefusedFile::NotTaken)?;
    if declared.is_some_and(|declared| declared != found.as_str()) {
        Err(RefusedFile::Another(found))
    } else {
        Ok(found)
    }
}

/// Plain text: UTF-8 without control characters, that does not begin as markup or a script does.
fn is_text(content: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(content) else { return false };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let markup = text
        .trim_start()
        .strip_prefix('<')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '!' | '?' | '/')));
    !markup && !text.starts_with("#!") && !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
}

/// The digest that knows a content again.
#[must_use]
pub fn sha256(content: &[u8]) -> [u8; 32] {
    Sha256::digest(content).into()
}

/// A harmless name for a file of this type: no path, nothing that a shell, a header or another system takes for something else, and
/// an extension that says what it is.
#[must_use]
pub fn name(given: &str, media_type: MediaType) -> String {
    let last = given.rsplit(['/', '\\']).next().unwrap_or_default();
    let safe: String =
        last.chars()
            .filter(|c| !is_hidden(*c))
            .map(|c| {
                if matches!(c, '<' | '>' | ':' | '"' | '|' | '?' | '*' | '%' | '$' | '`' | ';' | '&') { '_' } else { c }
            })
            .collect();
    let safe = safe.trim_matches(|c: char| c == '.' || c.is_whitespace());
    let extensions = media_type.extensions();
    let known = safe.rsplit_once('.').filter(|(_, end)| extensions.iter().any(|known| known.eq_ignore_ascii_case(end)));
    let (stem, extension) = known.unwrap_or((safe, extensions[0]));
    let room = NAME_CHARS_MAX - 1 - extension.len();
    let stem: String = stem.chars().take(room).collect();
    let stem = stem.trim_end_matches(|c: char| c == '.' || c.is_whitespace());
    let stem = if stem.is_empty() || is_device(stem) { format!("file{stem}") } else { stem.to_owned() };
    let stem: String = stem.chars().take(room).collect();
    format!("{stem}.{extension}")
}

/// Not to be seen, or turns what is to be seen around.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{ffff}' | '\u{e0000}'..='\u{e007f}')
}

/// A name that Windows takes for a device, with or without an extension.
fn is_device(stem: &str) -> bool {
    let first = stem.split('.').next().unwrap_or_default().trim().to_ascii_lowercase();
    let numbered = |name: &str| {
        first.strip_prefix(name).is_some_and(|rest| rest.len() == 1 && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    matches!(first.as_str(), "con" | "prn" | "aux" | "nul") || numbered("com") || numbered("lpt")
}

/// `Content-Disposition` of a download (RFC 6266): never shown in the page; the name in ASCII, and as it is (RFC 8187).
#[must_use]
pub fn disposition(name: &str) -> String {
    use std::fmt::Write as _;
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ') { c } else { '_' })
        .collect();
    let mut text = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_') {
            text.push(char::from(byte));
        } else {
            // A string takes what is written to it.
            write!(text, "%{byte:02X}").ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";

    #[test]
    fn the_content_says_what_a_file_is() {
        let jpeg = b"\xff\xd8\xff\xe0\0\x10JFIF\0";
        let webp = b"RIFF\x24\0\0\0WEBPVP8 ";
        for (content, declared, expected) in [
            (PNG, None, Ok(MediaType::Png)),
            (PNG, Some("application/octet-stream"), Ok(MediaType::Png)),
            (PNG, Some("IMAGE/PNG"), Ok(MediaType::Png)),
            (PNG, Some("image/jpeg"), Err(RefusedFile::Another(MediaType::Png))),
            (PNG, Some("text/html"), Err(RefusedFile::Another(MediaType::Png))),
            (jpeg, Some("image/jpeg"), Ok(MediaType::Jpeg)),
            (webp, Some("image/webp"), Ok(MediaType::Webp)),
            (b"%PDF-1.7\n%\xe2\xe3", None, Ok(MediaType::Pdf)),
            ("Düse;1\r\n".as_bytes(), Some("text/csv; charset=utf-8"), Ok(MediaType::Csv)),
            (b"a,b\n1,2\n", Some("text/plain"), Ok(MediaType::Text)),
            (b"<34>1 2003-10-11T22:14:15Z syslog", None, Ok(MediaType::Text)),
            (b"temperature < 40", None, Ok(MediaType::Text)),
            (b"BMW's gearbox is loud", None, Ok(MediaType::Text)),
            (b"", None, Err(RefusedFile::Empty)),
            (b"<!DOCTYPE html><html>", None, Err(RefusedFile::NotTaken)),
            (b"\xef\xbb\xbf \n<svg xmlns='http://www.w3.org/2000/svg'>", None, Err(RefusedFile::NotTaken)),
            (b"<?xml version='1.0'?><svg/>", Some("image/svg+xml"), Err(RefusedFile::NotTaken)),
            (b"<script>alert(1)</script>", Some("text/plain"), Err(RefusedFile::NotTaken)),
            (b"PK\x03\x04\x14\0\0\0\x08\0", Some("text/plain"), Err(RefusedFile::NotTaken)),
            (b"PK\x05\x06\0\0\0\0\0\0", None, Err(RefusedFile::NotTaken)),
            (b"\x1f\x8b\x08\0", None, Err(RefusedFile::NotTaken)),
            (b"#!/bin/sh\nrm -rf /\n", None, Err(RefusedFile::NotTaken)),
            (b"MZ\x90\0", None, Err(RefusedFile::NotTaken)),
            (b"\x7fELF\x02", None, Err(RefusedFile::NotTaken)),
            (b"GIF89a\x01\0", Some("image/gif"), Err(RefusedFile::NotTaken)),
            (b"text with \0", None, Err(RefusedFile::NotTaken)),
            (b"caf\xe9", None, Err(RefusedFile::NotTaken)),
        ] {
            assert_eq!(media_type(content, declared), expected, "{:?} {declared:?}", String::from_utf8_lossy(content));
        }
    }

    #[test]
    fn names_are_harmless() {
        for (given, expected) in [
            ("pump.png", "pump.png"),
            ("Düse 3.PNG", "Düse 3.PNG"),
            ("../../etc/passwd", "passwd.png"),
            ("..\\..\\windows\\win.ini", "win.ini.png"),
            ("/", "file.png"),
            ("", "file.png"),
            (".", "file.png"),
            ("..", "file.png"),
            (".htaccess", "htaccess.png"),
            ("evil.html", "evil.html.png"),
            ("a.png.exe", "a.png.exe.png"),
            ("a\r\nSet-Cookie: x=1.png", "aSet-Cookie_ x=1.png"),
            ("a\0.png", "a.png"),
            ("gpj.\u{202e}exe.png", "gpj.exe.png"),
            ("con", "filecon.png"),
            ("NUL.png", "fileNUL.png"),
            ("com1.a.png", "filecom1.a.png"),
            ("a\"b';c.png", "a_b'_c.png"),
            ("x. .png", "x.png"),
            ("$(reboot)`id`.png", "_(reboot)_id_.png"),
        ] {
            assert_eq!(name(given, MediaType::Png), expected, "{given:?}");
        }
        let long = name(&"ü".repeat(1_000), MediaType::Jpeg);
        assert_eq!((long.chars().count(), long.ends_with("ü.jpg")), (NAME_CHARS_MAX, true));
        assert_eq!(name("a.jpeg", MediaType::Jpeg), "a.jpeg");
        assert_eq!(name("a.log", MediaType::Text), "a.log");
        assert_eq!(name("a.csv", MediaType::Text), "a.csv.txt");
    }

    #[test]
    fn a_download_is_never_shown() {
        assert_eq!(disposition("a b.png"), "attachment; filename=\"a b.png\"; filename*=UTF-8''a%20b.png");
        assert_eq!(disposition("Dü\".png"), "attachment; filename=\"D__.png\"; filename*=UTF-8''D%C3%BC%22.png");
    }

    proptest::proptest! {
        #[test]
        fn any_name_becomes_one_that_harms_nobody(given in ".{0,300}") {
            for media_type in MediaType::ALL {
                let kept = name(&given, media_type);
                assert!(!kept.is_empty() && kept.chars().count() <= NAME_CHARS_MAX, "{kept:?}");
                assert!(!kept.contains(['/', '\\', ':', '"']) && !kept.starts_with('.') && !kept.contains(char::is_control));
                assert!(disposition(&kept).is_ascii());
                assert_eq!(name(&kept, media_type), kept, "a name that was made is kept");
            }
        }
    }
}
