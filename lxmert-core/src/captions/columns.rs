//! Which column of a table, or key of a JSON object, holds what.

/// Names of the image column, the most specific first; lower case, without spaces, `_` and `-`.
const IMAGE: [&str; 16] = [
    "filename",
    "imagename",
    "imagefile",
    "imagefilename",
    "filepath",
    "imagepath",
    "image",
    "img",
    "imgname",
    "imgfile",
    "imgpath",
    "file",
    "path",
    "imageid",
    "imgid",
    "photo",
];
/// Names of the sentence column, in the same form; each may carry a number.
const CAPTION: [&str; 12] = [
    "caption",
    "captions",
    "sentence",
    "sentences",
    "comment",
    "comments",
    "text",
    "texts",
    "raw",
    "title",
    "description",
    "descriptions",
];
/// Names of the column with a caption's number among its image's captions.
const NUMBER: [&str; 6] =
    ["commentnumber", "captionnumber", "sentencenumber", "textnumber", "captionindex", "commentindex"];

/// What a header needs; for the error about one that lacks it.
pub(super) const WANTED: &str = "a column for the image (file_name, image_name, image, …) and one for the sentence \
                                 (caption, sentence, comment, text; numbered where there are several)";

/// Indices of the columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    pub image: usize,
    /// One column, or several with the same name and a number.
    pub captions: Vec<usize>,
    pub number: Option<usize>,
    pub split: Option<usize>,
}

impl Columns {
    /// The columns that a header names; `None` if it lacks the image or the sentence.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let names: Vec<String> = names.into_iter().map(plain).collect();
        let find = |wanted: &[&str]| wanted.iter().find_map(|wanted| names.iter().position(|name| name == wanted));
        let image = find(&IMAGE)?;
        let captions = CAPTION.iter().find_map(|base| {
            let is_it = |name: &String| {
                name.strip_prefix(base).is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
            };
            let columns: Vec<usize> = (0..names.len()).filter(|&i| is_it(&names[i])).collect();
            (!columns.is_empty()).then_some(columns)
        })?;
        Some(Self { image, captions, number: find(&NUMBER), split: find(&["split"]) })
    }
}

fn plain(name: &str) -> String {
    let name = name.trim().trim_matches(['"', '\'']).chars();
    name.filter(|c| !matches!(c, ' ' | '_' | '-')).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(header: &str) -> Option<(usize, Vec<usize>, Option<usize>)> {
        Columns::of(header.split(',')).map(|columns| (columns.image, columns.captions, columns.number))
    }

    #[test]
    fn columns_are_chosen_by_name() {
        for (header, found) in [
            ("image,caption", (0, vec![1], None)),
            ("image_name, comment_number, comment", (0, vec![2], Some(1))),
            ("image,caption_number,caption,id", (0, vec![2], Some(1))),
            (",image,caption", (1, vec![2], None)),
            ("Unnamed: 0,file_name,text", (1, vec![2], None)),
            ("caption_id,caption,image_id,file_name", (3, vec![1], None)),
            ("\"Filename\",\"Caption 1\",\"Caption 2\"", (0, vec![1, 2], None)),
            ("filepath,title", (0, vec![1], None)),
            ("raw,sentids,split,filename,img_id", (3, vec![0], None)),
        ] {
            assert_eq!(places(header), Some(found), "{header}");
        }
        for header in ["id,number", "image,label", "caption", "a.jpg,A dog .", "image,caption_number"] {
            assert_eq!(places(header), None, "{header}");
        }
    }
}
