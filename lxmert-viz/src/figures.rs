//! Where figures are written, in which formats and sizes.

use crate::pictures::canvas::Canvas;
use crate::pictures::palette::ColourScale;
use crate::pictures::sheet::Look;
use crate::{Error, Result};
use lxmert_core::files::atomic_write;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A file format of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Pixels
    Png,
    /// Shapes and text, for papers
    Svg,
}

impl Format {
    const fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Svg => "svg",
        }
    }

    /// The format that a file name's extension implies.
    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?;
        [Self::Png, Self::Svg].into_iter().find(|format| extension.eq_ignore_ascii_case(format.extension()))
    }
}

/// Formats that users may ask for but that are not written; a folder with such a name would be a surprise.
const OTHER_FORMATS: [&str; 9] = ["pdf", "jpg", "jpeg", "eps", "ps", "tif", "tiff", "webp", "gif"];

/// The options of figures.
#[derive(Debug, Clone, clap::Args)]
pub struct FigureArgs {
    /// Where to write figures: a folder, or for a single figure a .png or .svg file [default: RUN/plots]
    #[arg(long, short, global = true, value_name = "PATH", help_heading = "Figures")]
    pub output: Option<PathBuf>,
    /// The formats, such as png,svg [default: that of --output, otherwise png]
    #[arg(long, global = true, value_enum, value_delimiter = ',', value_name = "FORMAT,…", help_heading = "Figures")]
    pub format: Vec<Format>,
    /// The width of each figure in pixels [default: as laid out]
    #[arg(long, global = true, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(64..=16_000), help_heading = "Figures")]
    pub width: Option<u32>,
    /// Size of text relative to photos, plots and cells [default: 1]
    #[arg(long, global = true, default_value_t = 1.0, value_name = "FACTOR", value_parser = font_scale, help_heading = "Figures")]
    pub font_scale: f32,
    /// The colour scale for numbers
    #[arg(long, global = true, value_enum, default_value_t, value_name = "NAME", help_heading = "Figures")]
    pub colours: ColourScale,
}

impl Default for FigureArgs {
    fn default() -> Self {
        Self { output: None, format: Vec::new(), width: None, font_scale: 1.0, colours: ColourScale::default() }
    }
}

fn font_scale(text: &str) -> std::result::Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| format!("'{text}' is not a number"))?;
    if (0.5..=3.0).contains(&value) { Ok(value) } else { Err("from 0.5 to 3".into()) }
}

impl FigureArgs {
    /// How to draw figures.
    pub fn look(&self) -> Look {
        Look { room: 1.0 / self.font_scale, colours: self.colours }
    }

    /// The folder for a command that writes several files.
    ///
    /// # Errors
    /// [`Error::Argument`] if `--output` names a file.
    pub fn folder(&self, default: PathBuf) -> Result<PathBuf> {
        match &self.output {
            Some(output) if self.names_file(output)? => {
                let output = output.display();
                Err(Error::Argument(format!("--output {output}: this command writes several files; pass a folder")))
            }
            Some(output) => Ok(output.clone()),
            None => Ok(default),
        }
    }

    /// The path of a single figure without extension: the file that `--output` names, otherwise `stem` in its folder.
    ///
    /// # Errors
    /// [`Error::Argument`] if the file's format is not one of `--format`, or is not supported.
    pub fn file(&self, default: PathBuf, stem: &str) -> Result<PathBuf> {
        match &self.output {
            Some(output) if self.names_file(output)? => Ok(output.with_extension("")),
            Some(output) => Ok(output.join(stem)),
            None => Ok(default.join(stem)),
        }
    }

    fn names_file(&self, output: &Path) -> Result<bool> {
        let shown = output.display();
        if let Some(format) = Format::of(output) {
            if !self.format.is_empty() && !self.format.contains(&format) {
                let advice = "give the file another extension, or omit --format";
                return Err(Error::Argument(format!(
                    "--output {shown}: its extension is not one of --format; {advice}"
                )));
            }
            return Ok(true);
        }
        let extension = output.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        if OTHER_FORMATS.contains(&extension.as_str()) {
            return Err(Error::Argument(format!("--output {shown}: figures are written as .png or .svg")));
        }
        Ok(false)
    }

    /// The formats to write.
    pub fn formats(&self) -> Vec<Format> {
        match (&self.format, self.output.as_deref().and_then(Format::of)) {
            (given, _) if !given.is_empty() => given.clone(),
            (_, Some(format)) => vec![format],
            _ => vec![Format::Png],
        }
    }

    /// Writes a figure in each format to `path` with its extension; returns the files.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a PNG with a side over the limit; [`Error::Core`] with the path.
    pub fn write(&self, sheet: &Canvas, path: &Path) -> Result<Vec<PathBuf>> {
        let scale = self.width.map_or(self.font_scale, |width| width as f32 / sheet.width().max(1) as f32);
        let write = |format: Format| {
            let mut file = path.as_os_str().to_owned();
            file.push(".");
            file.push(format.extension());
            let file = PathBuf::from(file);
            let bytes = match format {
                Format::Png => sheet.png(scale)?,
                Format::Svg => sheet.svg(scale)?.into_bytes(),
            };
            write_whole(&file, &bytes)?;
            Ok(file)
        };
        self.formats().into_iter().map(write).collect()
    }
}

/// Writes a file whole or not at all; creates its folder.
///
/// # Errors
/// [`Error::Core`] with the path.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    Ok(atomic_write(path, |file| file.write_all(bytes))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pictures::shapes::Rect;

    fn figures(output: &str, format: &[Format]) -> FigureArgs {
        FigureArgs { output: Some(output.into()), format: format.to_vec(), ..FigureArgs::default() }
    }

    #[test]
    fn an_output_with_a_figures_extension_is_a_file_otherwise_a_folder() {
        let single = |output: &str, format: &[Format]| figures(output, format).file("plots".into(), "heatmap");
        assert_eq!(single("out/fig.v2.svg", &[]).unwrap(), Path::new("out/fig.v2"));
        assert_eq!(figures("out/fig.svg", &[]).formats(), [Format::Svg]);
        assert_eq!(single("out.d", &[]).unwrap(), Path::new("out.d/heatmap"));
        assert_eq!(FigureArgs::default().file("plots".into(), "heatmap").unwrap(), Path::new("plots/heatmap"));
        let message = |result: Result<PathBuf>| result.unwrap_err().to_string();
        assert!(message(single("fig.pdf", &[])).contains("written as .png or .svg"));
        assert!(message(single("fig.svg", &[Format::Png])).contains("fig.svg"));
        assert!(message(figures("fig.svg", &[]).folder("plots".into())).contains("pass a folder"));
    }

    #[test]
    fn a_figure_is_written_in_each_format_at_its_width_without_leftovers() {
        let folder = tempfile::tempdir().unwrap();
        let mut sheet = Canvas::new(30, 20);
        sheet.fill(Rect::sized(0, 0, 15, 20), [200, 10, 10], 1.0);
        let args = FigureArgs { format: vec![Format::Png, Format::Svg], width: Some(90), ..FigureArgs::default() };
        let files = args.write(&sheet, &folder.path().join("deep/er/picture")).unwrap();
        let back = image::open(&files[0]).unwrap().to_rgb8();
        assert_eq!(back.dimensions(), (90, 60));
        assert_eq!((back.get_pixel(9, 9).0, back.get_pixel(60, 9).0), ([200, 10, 10], [255; 3]));
        assert!(std::fs::read_to_string(&files[1]).unwrap().contains("width=\"90\""));
        assert_eq!(std::fs::read_dir(files[0].parent().unwrap()).unwrap().count(), 2);
        let error = args.write(&sheet, Path::new("/proc/nothing/here")).unwrap_err().to_string();
        assert!(error.contains("/proc/nothing"), "{error}");
    }
}
