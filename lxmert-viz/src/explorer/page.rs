//! The page in one file: skeleton, styles, script and data.

use super::document::Document;
use crate::{Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

const SKELETON: &str = include_str!("page/page.html");
const STYLES: &str = include_str!("page/style.css");
/// The scripts, joined to one module in this order.
const SCRIPTS: [&str; 9] = [
    include_str!("page/data.js"),
    include_str!("page/maps.js"),
    include_str!("page/state.js"),
    include_str!("page/colours.js"),
    include_str!("page/matrix.js"),
    include_str!("page/panel.js"),
    include_str!("page/picture.js"),
    include_str!("page/live.js"),
    include_str!("page/main.js"),
];

/// The page with everything in it.
///
/// # Errors
/// [`Error::Drawing`] if the data cannot be written as JSON.
pub fn html(document: &Document) -> Result<String> {
    let data = serde_json::to_string(document).map_err(|error| Error::Drawing(error.to_string()))?;
    // `<` could end the script element; in JSON it occurs only inside strings.
    let data = data.replace('<', "\\u003c");
    let script = SCRIPTS.join("\n");
    let policy = policy(&script, document.live.is_some());
    let parts = [("{{policy}}", policy.as_str()), ("{{styles}}", STYLES), ("{{data}}", &data), ("{{script}}", &script)];
    let mut page = String::with_capacity(SKELETON.len() + script.len() + data.len());
    let mut rest = SKELETON;
    for (mark, text) in parts {
        let Some((before, after)) = rest.split_once(mark) else {
            return Err(Error::Drawing(format!("the page has no {mark}")));
        };
        page.push_str(before);
        page.push_str(text);
        rest = after;
    }
    page.push_str(rest);
    Ok(page)
}

/// The content security policy: only this script and these styles; no requests, or only requests to the page's own
/// server.
fn policy(script: &str, live: bool) -> String {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data: blob:; connect-src {}; base-uri 'none'; form-action 'none'",
        hash(script),
        hash(STYLES),
        if live { "'self'" } else { "'none'" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::palette::ColourScale;

    #[test]
    fn text_is_not_interpreted_as_markup() {
        let mut document = Document::new(
            "scenes",
            Some("</script><script>alert(1)</script> {{script}}".into()),
            ColourScale::default(),
        );
        document.title = "{{data}}".into();
        let page = html(&document).unwrap();
        assert_eq!(page.matches("</script>").count(), 2, "the data's and the module's own");
        assert!(page.contains("\\u003c/script>"));
        assert!(page.contains("connect-src 'none'"));
        document.live =
            Some(super::super::document::Live { detector: String::new(), most_bytes: 1, most_characters: 1 });
        assert!(html(&document).unwrap().contains("connect-src 'self'"));
    }
}
