//! The explorer in a real Chromium: the page shows what the library computes, with pointer and keyboard, in a file and
//! from the server. Without Chromium each test prints a message and passes.

mod chromium;
mod common;

use assert_cmd::Command;
use candle_core::Device;
use chromium::Browser;
use common::{Made, question_checkpoint, question_checkpoint_of, workspace, workspace_of};
use lxmert_core::features::{FeatureStore, Regions};
use lxmert_core::model::Capture;
use lxmert_viz::explain::maps::{Direction, PairMaps, Stance};
use lxmert_viz::explain::matrix::Matrix;
use lxmert_viz::explain::methods::Method;
use lxmert_viz::explain::scorer::{PairInput, Scorer, keep_regions};
use lxmert_viz::explorer::pack::{FINE_STEPS, STEPS};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

fn viz(made: &Made, arguments: &[&str]) -> String {
    let mut command = Command::cargo_bin("lxmert-viz").unwrap();
    command.current_dir(made.root()).args(["--quiet", "--threads", "2"]).args(arguments);
    command.env("XDG_CACHE_HOME", made.root().join("cache"));
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

/// Writes the page; returns its address and the data in it.
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
    store.regions(store.find(image).unwrap()).unwrap()
}

/// The library's result for a pair of the page.
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

/// Half a step of the quantisation, and half of the last digit that the page prints.
fn assert_matrix(shown: &[f64], want: &Matrix, (largest, steps): (f32, u16), what: &str) {
    assert_eq!(shown.len(), want.values.len(), "{what}");
    let bound = f64::from(largest) * (0.5 / f64::from(steps) + 1e-6) + 0.5e-4 + 1e-9;
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
    assert_eq!(browser.requests(), [url], "the file and nothing else");
    let pair = &data["pairs"][1];
    let (probability, maps) = computed(&made, &made.run().join("best"), &data, pair);
    let said = pair["views"][0]["probability"].as_f64().unwrap();
    assert!((said - f64::from(probability)).abs() < 1e-6);

    // A word: the strongest region according to Rust is the first one named on the photo, and the tip shows its weight.
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
                assert_matrix(
                    &shown_matrix(&mut browser),
                    map,
                    (largest(map), STEPS),
                    &format!("{way} {number} {head}"),
                );
            }
            choose(&mut browser, "head", "0");
            let bound = layer.probabilities.iter().map(largest).sum::<f32>() / layer.probabilities.len() as f32;
            assert_matrix(&shown_matrix(&mut browser), &layer.mean(), (bound, STEPS), &format!("{way} {number} mean"));
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
                Method::Attention => {
                    maps.last_cross().unwrap().language_to_vision.probabilities.iter().map(largest).fold(0.0, f32::max)
                }
                _ => largest(&matrix),
            };
            let steps = if method.of_layer(&maps.last_cross().unwrap().language_to_vision).is_some() {
                STEPS
            } else {
                FINE_STEPS
            };
            assert_matrix(&shown_matrix(&mut browser), &matrix, (bound, steps), method.slug());
            if method.needs_gradients() {
                choose(&mut browser, "stance", "for");
            }
        }
    }
    choose(&mut browser, "method", "relevancy");
    choose(&mut browser, "way", "language");
    let matrix = Method::Relevancy.words_to_words(&maps).unwrap();
    assert_matrix(&shown_matrix(&mut browser), &matrix, (largest(&matrix), FINE_STEPS), "relevancy within language");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    assert_eq!(browser.requests().len(), 1);
}

fn focused(browser: &mut Browser) -> String {
    browser.text(
        "(() => { const e = document.activeElement; if (e === document.body) return 'BODY'; const group = e.closest('[role=toolbar]'); \
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
        if stop == "BODY" {
            break;
        }
        let outline = browser.text("getComputedStyle(document.activeElement).outlineStyle");
        assert_ne!(outline, "none", "{stop} shows no focus");
        stops.push(stop);
    }
    for wanted in [
        "compare",
        "save",
        "link",
        "theme",
        "keys",
        "filter",
        "search",
        "model",
        "method",
        "way",
        "layer",
        "head",
        "View A: words",
        "View A: regions",
        "View A: layers and heads",
        "Numbers",
        "Layers × heads",
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
    let models: Vec<String> =
        serde_json::from_value(browser.eval(
            "[...document.querySelectorAll('[name=model]')].map((select) => select.selectedOptions[0].textContent)",
        ))
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

/// The server of a workspace whose regions are the small detector's.
struct Server {
    child: std::process::Child,
    address: String,
    made: Made,
}

impl Server {
    fn start() -> Self {
        let made = workspace_of(256);
        question_checkpoint_of(&made.root().join("runs/scenes-questions/best"), 256);
        let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("lxmert-viz"))
            .current_dir(made.root())
            .env("XDG_CACHE_HOME", made.root().join("cache"))
            .args(["--quiet", "--threads", "2", "serve", "--port", "0", "--pairs", "3"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.strip_prefix("http://").and_then(|rest| rest.split('/').next()).expect(&line).to_string();
        Self { child, address, made }
    }

    /// Sends a request as it is; gives the status and the body.
    fn raw(&self, request: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or_default();
        (status.unwrap_or_else(|| panic!("{text}")), body)
    }

    fn post(&self, path: &str, body: &[u8]) -> (u16, Value) {
        let head = format!("POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n", self.address, body.len());
        let (status, body) = self.raw(&[head.as_bytes(), body].concat());
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}")))
    }

    fn ask(&self, path: &str, question: &Value) -> (u16, Value) {
        self.post(path, question.to_string().as_bytes())
    }

    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_server_answers_as_the_command_line_and_the_library_do() {
    let server = Server::start();
    let made = &server.made;
    let photo = made.root().join("data/scenes/images/00004.png");
    let (status, seen) = server.post("/api/photo?my%20photo.png", &std::fs::read(&photo).unwrap());
    assert_eq!((status, seen["name"].as_str()), (200, Some("my photo.png")), "{seen}");
    let text = "A red circle above a blue square .";
    let ask = |question: bool, text: &str| json!({ "photo": seen["id"], "text": text, "question": question });
    let (status, views) = server.ask("/api/explain", &ask(false, text));
    assert_eq!(status, 200, "{views}");
    let by_command = viz(made, &["pair", "--image", photo.to_str().unwrap(), "--text", text]);
    let shown = lxmert_viz::pictures::grid::percent(views[0]["probability"].as_f64().unwrap() as f32);
    assert!(by_command.contains(&format!("P(match) = {shown}")), "{by_command} {shown}");
    let count = by_command.lines().find(|line| line.contains(" regions by the ")).unwrap();
    assert!(count.starts_with(&seen["regions"].as_array().unwrap().len().to_string()), "{count}");

    let question = "What colour is the circle ?";
    let (status, views) = server.ask("/api/explain", &ask(true, question));
    assert_eq!(status, 200, "{views}");
    let by_command = viz(made, &["relevancy", "--question", question, "--photo", photo.to_str().unwrap()]);
    for (best, line) in views[0]["best"].as_array().unwrap().iter().zip(by_command.lines().skip(1)) {
        let want = format!("{:.3}  {}", best["probability"].as_f64().unwrap(), best["answer"].as_str().unwrap());
        assert_eq!(line.trim(), want);
    }
    // Another answer is explained when it is named.
    let (_, views) = server
        .ask("/api/explain", &json!({ "photo": seen["id"], "text": question, "question": true, "answer": "two" }));
    assert_eq!(views[0]["answer"], "two");

    // Without a region and a word: the library's score of what is left.
    let page = server.raw(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", server.address).as_bytes()).1;
    let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    let pair = data["pairs"].as_array().unwrap().iter().find(|pair| pair["kind"] != "question").unwrap();
    let photo = &data["photos"][pair["photo"].as_u64().unwrap() as usize];
    let all = regions(made, photo["name"].as_str().unwrap());
    let scorer = Scorer::open(&made.run().join("best"), &Device::Cpu).unwrap();
    let mut ids = scorer.encode(pair["text"].as_str().unwrap()).unwrap().ids;
    ids.remove(2);
    let kept: Vec<usize> = (0..all.num_regions()).filter(|region| *region != 1).collect();
    let want = scorer.logits(&[(&keep_regions(&all, &kept), &ids)]).unwrap()[0];
    let base = json!({ "photo": photo["id"], "text": pair["text"], "question": false });
    let mut hiding = base.clone();
    hiding["hidden_words"] = json!([0, 2]);
    hiding["hidden_regions"] = json!([1, 99]);
    let (status, score) = server.ask("/api/score", &hiding);
    assert_eq!(status, 200, "{score}");
    assert!((score["logit"].as_f64().unwrap() - f64::from(want)).abs() < 1e-5, "{score} {want}");
    // Curves begin with the whole, and end without any region and without any word.
    let (status, curves) = server.ask("/api/perturb", &base);
    assert_eq!((status, curves.as_array().unwrap().len()), (200, 24));
    let whole = scorer.logits(&[(&all, &scorer.encode(pair["text"].as_str().unwrap()).unwrap().ids)]).unwrap()[0];
    for curve in curves.as_array().unwrap() {
        let first = curve["probability"][0].as_f64().unwrap();
        assert!((first - 1.0 / (1.0 + (-f64::from(whole)).exp())).abs() < 1e-5, "{curve} {whole}");
        assert_eq!(curve["removed"].as_array().unwrap().last().unwrap(), &json!(1.0));
    }
}

#[test]
fn the_server_refuses_what_is_not_its_own_and_stays_alive() {
    let server = Server::start();
    let own = &server.address;
    let get = |path: &str, headers: &str| {
        server.raw(format!("GET {path} HTTP/1.1\r\nHost: {own}\r\n{headers}\r\n").as_bytes())
    };
    assert_eq!(get("/", "").0, 200);
    for path in [
        "/etc/passwd",
        "/../../etc/passwd",
        "//etc/passwd",
        "/%2e%2e/data/README.md",
        "/data/README.md",
        "/api",
        "/explore.html",
        "/?x=/etc/passwd/../",
    ] {
        let (status, body) = get(path, "");
        assert!(status == 404 || path.starts_with("/?"), "{path}: {status}");
        assert!(!body.contains("root:") && !body.contains("a test's data"), "{path}");
    }
    let question = json!({ "photo": "0", "text": "a red circle", "question": false }).to_string();
    let post = |headers: &str| {
        let head =
            format!("POST /api/explain HTTP/1.1\r\n{headers}Content-Length: {}\r\n\r\n{question}", question.len());
        server.raw(head.as_bytes()).0
    };
    let host = format!("Host: {own}\r\n");
    assert_eq!(post(&format!("{host}Origin: http://{own}\r\n")), 200);
    assert_eq!(post(&host), 200, "a program of the user's own names no origin");
    for headers in [
        format!("{host}Origin: http://evil.example\r\n"),
        format!("{host}Origin: null\r\n"),
        format!("{host}Sec-Fetch-Site: cross-site\r\n"),
        "Host: evil.example\r\n".into(),
        String::new(),
    ] {
        assert_eq!(post(&headers), 403, "{headers}");
    }
    // Sizes.
    let (status, body) =
        server.raw(format!("POST /api/photo HTTP/1.1\r\n{host}Content-Length: 20000001\r\n\r\n").as_bytes());
    assert!(status == 413 && body.contains("at most 20 MB"), "{status} {body}");
    let large = vec![0u8; 21_000_000];
    let (status, _) = server.post_large(&large);
    assert_eq!(status, 413, "sent whole, it is refused with an answer too");
    assert_eq!(
        server
            .raw(format!("POST /api/photo HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n").as_bytes())
            .0,
        411
    );
    assert_eq!(server.raw(&[b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'a'; 20_000], b"\r\n\r\n"].concat()).0, 431);
    assert_eq!(server.raw(b"\x16\x03\x01\r\n\r\n").0, 400);
    // Broken pictures and odd questions: messages, and the server goes on.
    let picture = std::fs::read(server.made.root().join("data/scenes/images/00004.png")).unwrap();
    for bytes in [&picture[..picture.len() / 2], b"no picture", b""] {
        let (status, said) = server.post("/api/photo?x", bytes);
        assert!(status == 422 && !said["error"].as_str().unwrap().is_empty(), "{status} {said}");
    }
    for (ask, wanted, says) in [
        (json!({ "photo": "0", "text": "  ", "question": false }), 422, "empty"),
        (json!({ "photo": "0", "text": "x".repeat(501), "question": false }), 422, "at most 500"),
        (json!({ "photo": "nothing", "text": "a", "question": false }), 422, "drop it again"),
        (json!({ "photo": "0", "text": "a", "question": true, "answer": "mauve" }), 422, "no answer 'mauve'"),
        (json!({ "text": "a" }), 400, "photo"),
    ] {
        let (status, said) = server.ask("/api/explain", &ask);
        assert!(status == wanted && said["error"].as_str().unwrap().contains(says), "{ask}: {status} {said}");
    }
    // A sentence of more word pieces than the model reads is cut, and the answer says by how much.
    let long = json!({ "photo": "0", "text": "red ".repeat(100), "question": false });
    let (status, views) = server.ask("/api/explain", &long);
    assert!(status == 200 && views[0]["truncated"].as_u64().unwrap() > 0, "{status}");
    // Many at once: each is answered, by the model or by a message.
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..12).map(|_| scope.spawn(|| server.post("/api/explain", question.as_bytes()).0)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(statuses.iter().all(|status| [200, 503].contains(status)) && statuses.contains(&200), "{statuses:?}");
    // Memory stays flat over 200 requests, photos among them.
    let round = |count: usize| {
        for i in 0..count {
            let status = if i % 10 == 0 {
                server.post("/api/photo?a", &picture).0
            } else {
                server.post("/api/explain", question.as_bytes()).0
            };
            assert_eq!(status, 200);
        }
    };
    round(100);
    let before = server.memory();
    round(200);
    let after = server.memory();
    println!("memory before 200 requests {before} MB, after {after} MB");
    assert!(after <= before + 8, "{before} MB, then {after} MB");
}

impl Server {
    /// Sends a photo that is too large, whole, as a browser would.
    fn post_large(&self, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head =
            format!("POST /api/photo HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n", self.address, body.len());
        stream.write_all(head.as_bytes()).unwrap();
        let _ = stream.write_all(body); // the server may have closed by then
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }
}

#[test]
fn a_user_drops_a_photo_hides_a_region_and_sees_the_score_move() {
    let Some(mut browser) = Browser::start() else { return };
    let server = Server::start();
    browser.open(&format!("http://{}/", server.address));
    let said = "document.querySelector('.own-said').textContent";
    // What the page refuses by itself.
    let large = server.made.root().join("large.png");
    std::fs::write(&large, vec![0u8; 20_000_001]).unwrap();
    browser.choose_file("#photo-file", &large);
    browser.wait_for(&format!("{said}.includes('at most 20 MB')"));
    browser.eval("document.querySelector('.own form button').click()");
    browser.wait_for(&format!("{said}.includes('Write a sentence')"));
    let broken = server.made.root().join("broken.png");
    std::fs::write(&broken, b"no picture").unwrap();
    browser.choose_file("#photo-file", &broken);
    browser.wait_for(&format!("{said}.includes('not a JPEG')"));
    // A refusal is an answer of the server, which the console lists; nothing else may be in it.
    assert!(browser.complaints().iter().all(|line| line.contains("422")), "{:?}", browser.complaints());

    let photo = server.made.root().join("data/scenes/images/00004.png");
    browser.choose_file("#photo-file", &photo);
    browser.wait_for("document.querySelector('.dropped').textContent.includes('regions by the scenes detector')");
    let ask = |browser: &mut Browser, kind: &str, text: &str| {
        browser.eval(&format!(
            "(() => {{ document.querySelector('[name=own-kind][value={kind}]').click(); document.getElementById('own-text').value = {text:?}; \
             document.querySelector('.own form button').click(); }})()"
        ));
        browser.wait_for(&format!("document.querySelector('#verdict h2').textContent.includes({text:?})"));
    };
    ask(&mut browser, "sentence", "a red circle above a square");
    let by_command =
        viz(&server.made, &["pair", "--image", photo.to_str().unwrap(), "--text", "a red circle above a square"]);
    let shown = browser.text("document.querySelector('#verdict strong').textContent");
    let shown = shown.split(':').next().unwrap();
    assert!(by_command.contains(&format!("{shown} (")), "{shown}, but {by_command}");

    browser.eval("document.querySelector('.region').focus()");
    browser.key("Enter");
    browser.key("Delete");
    browser.wait_for("document.querySelector('.score strong')");
    assert_eq!(browser.text("document.querySelector('.region.gone').dataset.item"), "0");
    let hidden = browser.text("document.querySelector('.score strong').dataset.probability");
    let seen = browser.eval("document.querySelectorAll('.region').length").as_u64().unwrap();
    assert!(seen > 1 && hidden.parse::<f64>().unwrap() > 0.0, "{hidden}");
    browser.eval("document.querySelector('.chip').click()");
    browser.wait_for("!document.querySelector('.region.gone') && document.querySelector('.score').textContent === ''");
    shoot(&mut browser, "served");
    browser.eval("[...document.querySelectorAll('.removal button')].find((b) => b.textContent.startsWith('Perturbation')).click()");
    browser.wait_for("document.querySelectorAll('.curves polyline').length === 24");
    browser.eval("document.querySelector('.curves').scrollIntoView()");
    shoot(&mut browser, "perturbation");
    ask(&mut browser, "question", "What colour is the circle ?");
    browser.wait_for("document.querySelectorAll('.answers li').length === 3");
    browser.eval("document.querySelector('.answers button').click()");
    browser.wait_for("document.querySelectorAll('#list li').length === 6");
    browser.size(360, 800);
    assert!(browser.eval("document.documentElement.scrollWidth - innerWidth").as_i64().unwrap() <= 0);
    shoot(&mut browser, "served-360");
}
