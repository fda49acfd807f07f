//! Text as Python 2 writes it into a pickle: bytes without an encoding, and the escapes of protocol 0.

/// Decodes bytes as UTF-8 if valid, otherwise as Latin-1.
pub fn of_bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().map(|&byte| char::from(byte)).collect(),
    }
}

/// The bytes of a quoted string as `repr` writes it (`'it\'s'`, `"it's"`, `'caf\xc3\xa9'`); `None` if it is not one.
pub fn unquoted(line: &str) -> Option<Vec<u8>> {
    let line = line.trim_end_matches('\r');
    let quote = line.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut rest = line.strip_prefix(quote)?.strip_suffix(quote)?.bytes();
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'x' => {
                    let digits = [rest.next()?, rest.next()?];
                    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                }
                escaped @ (b'\\' | b'\'' | b'"') => escaped,
                _ => return None,
            },
            other => other,
        });
    }
    Some(bytes)
}

/// Decodes Python's `raw-unicode-escape`: Latin-1 with `\uXXXX` and `\UXXXXXXXX`.
pub fn raw_unicode(bytes: &[u8]) -> String {
    let mut units: Vec<u16> = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = match (byte, bytes.get(at + 1)) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => 0,
        };
        let escaped = bytes.get(at + 2..at + 2 + digits).filter(|_| digits > 0);
        let code = escaped.and_then(|hex| u32::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match code {
            Some(code) => {
                match u16::try_from(code) {
                    Ok(unit) => units.push(unit), // perhaps half of a surrogate pair, which Python 2 writes as two escapes
                    Err(_) => {
                        let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                        units.extend_from_slice(character.encode_utf16(&mut [0; 2]));
                    }
                }
                at += 2 + digits;
            }
            None => {
                units.push(byte.into());
                at += 1;
            }
        }
    }
    String::from_utf16_lossy(&units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_quoted_strings_as_repr_writes_them() {
        let text = |line: &str| unquoted(line).map(|bytes| of_bytes(&bytes));
        for (line, want) in [
            ("'left'", "left"),
            (r#"'it\'s "x"'"#, "it's \"x\""),
            ("\"man's\"", "man's"),
            ("'\"hi\"'", "\"hi\""),
            (r"'a\\b\n\t'", "a\\b\n\t"),
            (r"'caf\xc3\xa9'", "café"),
            (r"'caf\xe9'", "café"),
            ("''", ""),
        ] {
            assert_eq!(text(line).as_deref(), Some(want), "{line}");
        }
        for line in ["", "'", "left", "'left\"", r"'\x4'", r"'\q'"] {
            assert_eq!(text(line), None, "{line}");
        }
    }

    #[test]
    fn reads_unicode_escapes_and_surrogate_pairs() {
        assert_eq!(raw_unicode(b"caf\xe9 \\u0041\\ud83d\\ude00\\U0001f600 \\x \\u12"), "café A😀😀 \\x \\u12");
    }
}
