//! Which column, or which key of a JSON object, holds what.

/// Names of the image, the most telling first, in lower case without spaces, `_` and `-`.
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
/// Names of the sentence, likewise; each may be numbered.
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
/// Names of a caption's number among those of its image.
const NUMBER: [&str; 6] =
    ["commentnumber", "captionnumber", "sentencenumber", "textnumber", "captionindex", "commentindex"];

/// What a header that is not understood should have.
pub(super) const WANTED: &str = "a column for the image (file_name, image_name, image, …) and one for the sentence \
                                 (caption, sentence, comment, text; numbered where there are several)";

/// Places of the columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    pub image: usize,
    /// One, or several of one name that are numbered.
    pub captions: Vec<usize>,
    pub number: Option<usize>,
    pub split: Option<usize>,
}

impl Columns {
    /// The columns of a header; `None` where it lacks the image or the sentence.
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
