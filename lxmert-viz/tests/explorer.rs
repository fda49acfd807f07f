//! The explorer in a real Chromium: what the page shows is what the library computes, by pointer and by keyboard, in a
//! file and from the server. Where no Chromium is installed each test says so and passes.

mod chromium;
mod common;

use assert_cmd::Command;
use candle_core::Device;
use chromium::Browser;
use common::{Made, question_checkpoint, workspace};
use lxmert_core::features::{FeatureStore, Regions};
use lxmert_core::image_names::NameFinder;
use lxmert_core::model::Capture;
use lxmert_viz::explain::maps::{Direction, PairMaps, Stance};
use lxmert_viz::explain::matrix::Matrix;
use lxmert_viz::explain::methods::Method;
use lxmert_viz::explain::scorer::{PairInput, Scorer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn viz(made: &Made, arguments: &[&str]) -> String {
    let mut command = Command::cargo_bin("lxmert-viz").unwrap();
    command.current_dir(made.root()).args(["--quiet", "--threads", "2"]).args(arguments);
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

/// Writes the page, and gives its address and the data in it.
fn page(made: &Made, arguments: &[&str]) -> (String, Value) {
    let said = viz(made, &[&["explore"], arguments].concat());
    let path = made.run().join("explore.html");
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    let html = std::fs::read_to_string(&path).unwrap();
    let data = html.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    (format!("file://{}", path.display()), serde_json::from_str(data).unwrap())
}

fn regions(made: &Made, image: &str) -> Regions {
    let store = FeatureStore::open(made.root().join("data/features/scenes")).unwrap();
    store.regions(NameFinder::new(store.names()).find(image).unwrap()).unwrap()
}

/// What the library says of a pair of the page.
fn computed(made: &Made, checkpoint: &Path, data: &Value, pair: &Value) -> (f32, PairMaps) {
    let scorer = Scorer::open(checkpoint, &Device::Cpu).unwrap();
    let image = data["photos"][pair["photo"].as_u64().unwrap() as usize]["name"].as_str().unwrap();
    let regions = regions(made, image);
    let input = PairInput { regions: &regions, text: pair["text"].as_str().unwrap() };
    let mut scored = scorer.score(&[input], Capture::Probes).unwrap();
    let scored = scored.remove(0);
    (scored.probability(), scored.maps.unwrap())
}

/// The numbers of the matrix that the page shows.
fn shown_matrix(browser: &mut Browser) -> Vec<f64> {
    let numbers = browser.eval(
        "(() => { const d = document.querySelector('.numbers'); d.open = true; return new Promise((done) => setTimeout(() => \
         done([...d.querySelectorAll('tbody td')].map((cell) => Number(cell.textContent))), 30)); })()",
    );
    numbers.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Half a step of the quantisation, and half of the last digit that the page writes.
fn assert_matrix(shown: &[f64], want: &Matrix, largest: f32, what: &str) {
    assert_eq!(shown.len(), want.values.len(), "{what}");
    let bound = f64::from(largest) * (1.0 / 510.0 + 1e-6) + 0.5e-4 + 1e-9;
    for (shown, want) in shown.iter().zip(&want.values) {
        assert!((shown - f64::from(*want)).abs() <= bound, "{what}: {shown} for {want}, bound {bound}");
    }
}

fn largest(matrix: &Matrix) -> f32 {
    matrix.values.iter().copied().fold(0.0, f32::max)
}

fn choose(browser: &mut Browser, name: &str, value: &str) {
    let event = if ["layer", "head"].contains(&name) { "input" } else { "change" };
    browser.eval(&format!(
        "(() => {{ const e = document.querySelector('.panel [name={name}]'); e.value = {value:?}; \
         if (e.value !== {value:?}) throw Error('no ' + {value:?}); \
         e.dispatchEvent(new Event({event:?})); }})()"
    ));
}

#[test]
fn the_page_shows_the_numbers_of_the_library() {
    let Some(mut browser) = Browser::start() else { return };
    let made = workspace();
    let (url, data) = page(&made, &["--pairs", "4"]);
    assert_eq!(data["pairs"].as_array().unwrap().len(), 4);
    browser.open(&format!("{url}#pair=2"));
    assert_eq!(browser.requests(), [format!("{url}#pair=2")], "the file and nothing else");
    let pair = &data["pairs"][1];
    let (probability, maps) = computed(&made, &made.run().join("best"), &data, pair);
    let said = pair["views"][0]["probability"].as_f64().unwrap();
    assert!((said - f64::from(probability)).abs() < 1e-6);

    // A word: the region that is strongest by Rust is the first that is named on the photo, and the tip says its weight.
    let word = 3;
    browser.hover(&format!(".word[data-item='{word}']"));
    let row = maps.last_cross().unwrap().language_to_vision.mean();
    let row = row.row(word);
    let strongest = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    let widest = "[...document.querySelectorAll('.region i')].map((bar) => parseFloat(bar.style.width))";
    let widths: Vec<f64> = serde_json::from_value(browser.eval(widest)).unwrap();
    let widest = (0..widths.len()).max_by(|a, b| widths[*a].total_cmp(&widths[*b])).unwrap();
    assert_eq!(widest, strongest);
    let label = browser.text(&format!("document.querySelectorAll('.region')[{strongest}].getAttribute('aria-label')"));
    let shown: f64 = label.split(", ").nth(1).unwrap().split(" ±").next().unwrap().parse().unwrap();
    assert!((shown - f64::from(row[strongest])).abs() < 0.003, "{label} for {}", row[strongest]);
    let last = "[...document.querySelectorAll('.photo [data-named]')].map((box) => box.dataset.named).at(-1)";
    let stands_out = row[strongest] >= 1.5 * row.iter().sum::<f32>() / row.len() as f32;
    if stands_out {
        assert_eq!(browser.text(last), strongest.to_string());
    }
    // A region: its column.
    browser.hover(&format!(".region[data-item='{strongest}']"));
    let label = browser.text(&format!("document.querySelectorAll('.word')[{word}].getAttribute('aria-label')"));
    assert!(label.contains(&format!("{shown:.4}")), "{label}");

    // Sliders: each head of each layer of each kind of attention.
    let ways = [
        ("language-vision", vec![Direction::LanguageToVision]),
        ("vision-language", vec![Direction::VisionToLanguage]),
        ("language", vec![Direction::Language, Direction::LanguageSelf]),
        ("vision", vec![Direction::Vision, Direction::VisionSelf]),
    ];
    for (way, directions) in &ways {
        choose(&mut browser, "way", way);
        let layers: Vec<_> = directions.iter().flat_map(|direction| maps.layers(*direction)).collect();
        for (number, layer) in layers.iter().enumerate() {
            choose(&mut browser, "layer", &(number + 1).to_string());
            for (head, map) in layer.probabilities.iter().enumerate() {
                choose(&mut browser, "head", &(head + 1).to_string());
                assert_matrix(&shown_matrix(&mut browser), map, largest(map), &format!("{way} {number} {head}"));
            }
            choose(&mut browser, "head", "0");
            let bound = layer.probabilities.iter().map(largest).sum::<f32>() / layer.probabilities.len() as f32;
            assert_matrix(&shown_matrix(&mut browser), &layer.mean(), bound, &format!("{way} {number} mean"));
        }
    }
    // Methods, for and against.
    choose(&mut browser, "way", "language-vision");
    for method in Method::ALL {
        choose(&mut browser, "method", method.slug());
        for stance in [Stance::For, Stance::Against] {
            if stance == Stance::Against {
                if !method.needs_gradients() {
                    continue;
                }
                choose(&mut browser, "stance", "against");
            }
            let maps = maps.taking(stance);
            let matrix = method.words_to_regions(&maps).unwrap();
            let bound = match method {
                Method::Attention => maps.last_cross().unwrap().language_to_vision.probabilities.iter().map(largest).fold(0.0, f32::max),
                _ => largest(&matrix),
            };
            assert_matrix(&shown_matrix(&mut browser), &matrix, bound, method.slug());
            if method.needs_gradients() {
                choose(&mut browser, "stance", "for");
            }
        }
    }
    choose(&mut browser, "method", "relevancy");
    choose(&mut browser, "way", "language");
    let matrix = Method::Relevancy.words_to_words(&maps).unwrap();
    assert_matrix(&shown_matrix(&mut browser), &matrix, largest(&matrix), "relevancy within language");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    assert_eq!(browser.requests().len(), 1);
}

fn focused(browser: &mut Browser) -> String {
    browser.text(
        "(() => { const e = document.activeElement; const group = e.closest('[role=toolbar]'); \
         return (group ? group.getAttribute('aria-label') : e.id || e.name || e.getAttribute('aria-label') || e.textContent || e.tagName).trim(); })()",
    )
}

#[test]
fn the_keyboard_reaches_everything_and_a_link_shows_the_same() {
    let Some(mut browser) = Browser::start() else { return };
    let made = workspace();
    question_checkpoint(&made.root().join("runs/scenes-questions/best"));
    checkpoint_with_other_weights(&made);
    let (url, data) = page(&made, &["--pairs", "6", "--compare", "runs/other/best"]);
    assert_eq!(data["models"].as_array().unwrap().len(), 3);
    browser.open(&url);
    let mut stops = Vec::new();
    for _ in 0..60 {
        browser.key("Tab");
        let stop = focused(&mut browser);
        let outline = browser.text("getComputedStyle(document.activeElement).outlineStyle");
        assert_ne!(outline, "none", "{stop} shows no focus");
        if stop == "BODY" {
            break;
        }
        stops.push(stop);
    }
    for wanted in [
        "compare", "save", "link", "theme", "keys", "filter", "search", "model", "method", "way", "layer", "head",
        "View A: words", "View A: regions", "View A: layers and heads", "Numbers", "Layers × heads",
    ] {
        assert!(stops.iter().any(|stop| stop == wanted), "Tab does not reach {wanted}: {stops:?}");
    }
    assert!(stops.iter().any(|stop| stop.starts_with("words attend to regions")), "the matrix: {stops:?}");

    // Words: arrows preview, Enter keeps, the fragment says so, Escape lets go.
    browser.eval("document.querySelector('.word').focus()");
    browser.key("ArrowRight");
    browser.key("ArrowRight");
    assert!(browser.text("document.querySelector('.word.on').dataset.item") == "2");
    browser.key("Enter");
    assert!(browser.text("location.hash").contains("word=2"));
    assert_eq!(browser.text("document.querySelector('.word[aria-pressed=true]').dataset.item"), "2");
    // The matrix: arrows read cells aloud.
    browser.eval("document.querySelector('.matrix canvas').focus()");
    browser.key("ArrowDown");
    browser.key("ArrowRight");
    let spoken = browser.text("document.getElementById('spoken').textContent");
    assert!(spoken.contains('→') && spoken.contains('±'), "{spoken}");
    // A head.
    browser.eval("document.querySelector('.heads [tabindex=\"0\"]').focus()");
    browser.key("Home");
    browser.key("ArrowRight");
    browser.key("Enter");
    let hash = browser.text("location.hash");
    assert!(hash.contains("l=1") && hash.contains("h=1"), "{hash}");
    // Another pair, by its list.
    browser.eval("document.querySelector('#list [aria-current]').focus()");
    browser.key("ArrowDown");
    browser.key("Enter");
    browser.wait_for("location.hash.includes('pair=2')");
    browser.key("Escape");
    assert!(!browser.text("location.hash").contains("word="));
    // Side by side: the same region in both, and a link that opens the same.
    browser.eval("document.getElementById('compare').click()");
    browser.wait_for("document.querySelectorAll('.panel').length === 2");
    browser.eval("document.querySelector('.region').click()");
    let seen = "JSON.stringify([...document.querySelectorAll('.panel')].map((p) => [p.querySelector('.said').textContent, \
                [...p.querySelectorAll('.word')].map((w) => w.getAttribute('aria-label'))]))";
    let before = browser.text(seen);
    let models: Vec<String> = serde_json::from_value(
        browser.eval("[...document.querySelectorAll('[name=model]')].map((select) => select.selectedOptions[0].textContent)"),
    )
    .unwrap();
    assert_eq!(models, ["runs/scenes/best", "runs/other/best"]);
    let link = browser.text("location.href");
    browser.open(&link);
    assert_eq!(browser.text(seen), before);
    assert_eq!(browser.complaints(), Vec::<String>::new());

    // Filters.
    browser.open(&format!("{url}#show=question"));
    let kinds = data["pairs"].as_array().unwrap().iter().filter(|pair| pair["kind"] == "question").count();
    assert!(kinds > 0, "the questions' checkpoint beside the run is shown");
    assert_eq!(browser.eval("document.querySelectorAll('#list li').length"), json!(kinds));
    let answers = "document.querySelectorAll('.answers li').length";
    browser.eval("document.querySelector('#list button').click()");
    browser.wait_for(&format!("{answers} === 3"));
    browser.open(&format!("{url}#text=no+such+text"));
    assert_eq!(browser.eval("document.querySelectorAll('#list li').length"), json!(0));
}

/// A checkpoint of the same form whose weights are others.
fn checkpoint_with_other_weights(made: &Made) {
    let (from, to) = (made.run().join("best"), made.root().join("runs/other/best"));
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let tensors = candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu).unwrap();
    let scaled = tensors.into_iter().map(|(name, tensor)| (name, (tensor * 0.9).unwrap())).collect();
    candle_core::safetensors::save(&scaled, to.join("model.safetensors")).unwrap();
}

#[test]
fn everything_has_a_name_fits_a_phone_and_is_saved_as_a_picture() {
    let Some(mut browser) = Browser::start() else { return };
    let made = workspace();
    let (url, _) = page(&made, &["--pairs", "2"]);
    browser.open(&url);
    browser.eval("document.getElementById('compare').click()");
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let roles = ["button", "combobox", "slider", "searchbox", "image", "toolbar", "region", "img"];
    let mut counted = 0;
    for node in tree["nodes"].as_array().unwrap() {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        if node["ignored"] == json!(false) && roles.contains(&role) {
            let name = node["name"]["value"].as_str().unwrap_or_default();
            assert!(!name.trim().is_empty(), "without a name: {node}");
            counted += 1;
        }
    }
    assert!(counted > 40, "{counted}");
    for (scheme, paper) in [("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 24, 28)")] {
        browser.scheme(scheme);
        assert_eq!(browser.text("getComputedStyle(document.body).backgroundColor"), paper);
        let contrasts = browser.eval(CONTRASTS);
        for contrast in contrasts.as_array().unwrap() {
            assert!(contrast[1].as_f64().unwrap() >= 4.5, "{scheme}: {contrast}");
        }
        for width in [1280, 768, 360] {
            browser.size(width, 800);
            let wide = browser.eval("document.documentElement.scrollWidth - innerWidth");
            assert!(wide.as_i64().unwrap() <= 0, "{width}: {wide} pixels beyond the edge");
            shoot(&mut browser, &format!("{scheme}-{width}"));
        }
        browser.size(1280, 900);
    }
    let folder = tempfile::tempdir().unwrap();
    let allow = json!({ "behavior": "allow", "downloadPath": folder.path() });
    browser.call("Browser.setDownloadBehavior", allow);
    browser.eval("document.getElementById('save').focus()");
    browser.key("Enter");
    let file = saved(folder.path());
    let picture = image::open(&file).unwrap().to_rgb8();
    let first = *picture.get_pixel(0, 0);
    let other = picture.pixels().filter(|pixel| **pixel != first).count();
    assert!(picture.width() > 2500 && other > 200_000, "{} × {}: {other}", picture.width(), picture.height());
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// The contrast of each colour of text with what it stands on, by WCAG.
const CONTRASTS: &str = "(() => { const lum = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map((v) => { v /= 255; \
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; }; \
    const under = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$/.test(c)) return c; } return 'rgb(255, 255, 255)'; }; \
    return [...document.querySelectorAll('h2, p, label, small, button, summary, output, .legend span, footer')].filter((e) => e.offsetParent && e.textContent.trim() && !e.disabled) \
    .map((e) => { const [a, b] = [lum(getComputedStyle(e).color), lum(under(e))]; return [e.className + ' ' + e.textContent.slice(0, 20), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; }); })()";

/// Leaves a picture of the page in `target/tmp/explorer/` to be looked at.
fn shoot(browser: &mut Browser, name: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("explorer");
    std::fs::create_dir_all(&folder).unwrap();
    browser.screenshot(&folder.join(format!("{name}.png")));
}

fn saved(folder: &Path) -> PathBuf {
    for _ in 0..200 {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        if let Some(file) = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "png")) {
            return file;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("no picture was saved in {}", folder.display());
}
