//! The page: the files that `npm run build` left in `cloud/web/dist`, embedded in the binary.
//!
//! A build without them serves a page that says how to build it. Files below `assets/` have their hash in their name
//! and may be kept for ever; everything else is asked for again with its `ETag`. A path that is no file and looks
//! like none is the page itself: it finds its own way.

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use rust_embed::{EmbeddedFile, RustEmbed};
use tower_http::compression::CompressionLayer;

/// Of every file of the page. Charts and components set styles from scripts, hence `unsafe-inline` for styles only.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self' ws: wss:; \
         object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

const NOT_BUILT: &str = "<!doctype html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<title>Gemba</title>
<h1>The page is not built</h1>
<p>This build of the cloud has no web page in it; the API under <code>/api/v1</code> works. To build the page:</p>
<pre>cd cloud/web
npm ci
npm run build</pre>
<p>and then build the cloud again.</p>
</html>
";

#[derive(RustEmbed)]
#[folder = "web/dist"]
#[allow_missing = true]
struct Dist;

/// The API with the page behind it, compressed for clients that like it.
pub fn site(api: Router) -> Router {
    api.fallback(page).layer(CompressionLayer::new())
}

async fn page(request: Request) -> Response {
    let mut response = if matches!(*request.method(), Method::GET | Method::HEAD) {
        answer(request.uri().path(), request.headers(), <Dist as RustEmbed>::get)
    } else {
        (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")]).into_response()
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn answer(path: &str, headers: &HeaderMap, get: impl Fn(&str) -> Option<EmbeddedFile>) -> Response {
    let path = path.trim_start_matches('/');
    if let Some(file) = Some(path).filter(|path| !path.is_empty()).and_then(&get) {
        return send(path, &file, headers);
    }
    let looks_like_a_file = path.rsplit('/').next().is_some_and(|last| last.contains('.'));
    if looks_like_a_file {
        return StatusCode::NOT_FOUND.into_response();
    }
    match get("index.html") {
        Some(index) => send("index.html", &index, headers),
        None => ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], NOT_BUILT).into_response(),
    }
}

fn send(path: &str, file: &EmbeddedFile, headers: &HeaderMap) -> Response {
    let hash = file.metadata.sha256_hash();
    let tag = format!("\"{:032x}\"", hash[..16].iter().fold(0_u128, |tag, byte| tag << 8 | u128::from(*byte)));
    let caching = if path.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    let known = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    // Compression on the way makes a tag a weak one.
    let is_known = known.is_some_and(|tags| tags.split(',').any(|one| one.trim().trim_start_matches("W/") == tag));
    let head = [(header::ETAG, tag), (header::CACHE_CONTROL, caching.to_owned())];
    if is_known {
        return (StatusCode::NOT_MODIFIED, head).into_response();
    }
    (head, [(header::CONTENT_TYPE, content_type(path))], file.data.clone().into_owned()).into_response()
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Option<EmbeddedFile> {
        let data = match path {
            "index.html" => "<html>",
            "assets/index-Ab12.js" => "1",
            _ => return None,
        };
        let metadata = rust_embed::Metadata::__rust_embed_new([7; 32], None, None);
        Some(EmbeddedFile { data: data.as_bytes().into(), metadata })
    }

    #[test]
    fn files_the_page_and_what_is_missing() {
        for (path, status, kind, caching) in [
            ("/", 200, "text/html; charset=utf-8", "no-cache"),
            ("/machines/7", 200, "text/html; charset=utf-8", "no-cache"),
            ("/assets/index-Ab12.js", 200, "text/javascript; charset=utf-8", "public, max-age=31536000, immutable"),
            ("/assets/index-old.js", 404, "", ""),
            ("/../etc/passwd.txt", 404, "", ""),
        ] {
            let response = answer(path, &HeaderMap::new(), get);
            let header = |name| response.headers().get(name).map_or("", |value: &HeaderValue| value.to_str().unwrap());
            assert_eq!(response.status().as_u16(), status, "{path}");
            assert_eq!((header(header::CONTENT_TYPE), header(header::CACHE_CONTROL)), (kind, caching), "{path}");
        }
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        let tag = answer("/", &HeaderMap::new(), get).headers()[header::ETAG].clone();
        for known in [tag.to_str().unwrap().to_owned(), format!("\"x\", W/{}", tag.to_str().unwrap())] {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, known.parse().unwrap())]);
            assert_eq!(answer("/", &headers, get).status(), StatusCode::NOT_MODIFIED);
        }
    }

    #[tokio::test]
    async fn without_the_files_there_is_a_page_that_says_how_to_build_it() {
        let response = answer("/", &HeaderMap::new(), |_| None);
        assert_eq!(response.status(), StatusCode::OK);
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("npm run build"));
    }
}
