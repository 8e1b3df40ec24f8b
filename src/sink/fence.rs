//! What a server may answer: RESP2, in measure.
//!
//! fred 10.1.0 believes what it reads: a bulk's length is allocated for, a nested reply is parsed
//! by recursion until the stack is gone. So every byte passes here first, and a reply that is
//! deeper, longer or more than ours ever are ends the connection. Pure.

/// Levels of a reply: those of SCAN are two.
const MAX_DEPTH: usize = 8;

/// Bytes of a reply. A page of SCAN has a thousand keys or so.
const MAX_BYTES: usize = 16 << 20;

/// Parts of a reply.
const MAX_PARTS: u64 = 200_000;

/// Bytes of a status or an error.
const MAX_LINE: usize = 16 << 10;

/// Bytes of a line that is a number.
const MAX_NUMBER: usize = 21;

/// What no Redis answers to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Breach {
    /// Another protocol, or none.
    #[error(
        "its answer is not in Redis' protocol (RESP2); does REDIS_URL lead to another service, or a TLS port?"
    )]
    Protocol,
    /// See [`MAX_DEPTH`].
    #[error("a reply is nested more than {MAX_DEPTH} deep")]
    Depth,
    /// See [`MAX_BYTES`].
    #[error("a reply has more than {} MB", MAX_BYTES >> 20)]
    Bytes,
    /// See [`MAX_PARTS`].
    #[error("a reply has more than {MAX_PARTS} parts")]
    Parts,
    /// See [`MAX_LINE`].
    #[error("a status or an error has more than {} kB", MAX_LINE >> 10)]
    Line,
}

/// Where in a reply it is.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Before the sign of a part.
    Sign,
    /// In a status or an error: bytes so far.
    Line(usize),
    /// In a line that is a number.
    Number(Sign),
    /// In a bulk: bytes left, its end included.
    Bulk(usize),
}

#[derive(Debug, Clone, Copy)]
enum Sign {
    Integer,
    Bulk,
    List,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Fence {
    place: Place,
    number: Vec<u8>,
    open: Vec<u64>, // lists around the place: parts left
    bytes: usize,   // of this reply
    parts: u64,
}

impl Fence {
    pub(super) fn new() -> Self {
        Self {
            place: Place::Sign,
            number: Vec::with_capacity(MAX_NUMBER),
            open: Vec::with_capacity(MAX_DEPTH),
            bytes: 0,
            parts: 0,
        }
    }

    /// May these bytes pass?
    ///
    /// # Errors
    /// [`Breach`]; then nothing of them may.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) -> Result<(), Breach> {
        while let Some(&first) = bytes.first() {
            let taken = match self.place {
                Place::Sign => {
                    self.place = match first {
                        b'+' | b'-' => Place::Line(0),
                        b':' => Place::Number(Sign::Integer),
                        b'$' => Place::Number(Sign::Bulk),
                        b'*' => Place::Number(Sign::List),
                        _ => return Err(Breach::Protocol),
                    };
                    1
                }
                Place::Line(so_far) => {
                    let end = bytes.iter().position(|&byte| byte == b'\n');
                    let taken = end.map_or(bytes.len(), |end| end + 1);
                    if so_far + taken > MAX_LINE {
                        return Err(Breach::Line);
                    }
                    self.place = Place::Line(so_far + taken);
                    if end.is_some() {
                        self.part_ends();
                    }
                    taken
                }
                Place::Number(sign) => {
                    if first == b'\n' {
                        self.number_ends(sign)?;
                    } else if self.number.len() == MAX_NUMBER {
                        return Err(Breach::Protocol);
                    } else {
                        self.number.push(first);
                    }
                    1
                }
                Place::Bulk(left) => {
                    let taken = left.min(bytes.len());
                    self.place = Place::Bulk(left - taken);
                    if left == taken {
                        self.part_ends();
                    }
                    taken
                }
            };
            bytes = &bytes[taken..];
            self.count(taken)?;
        }
        Ok(())
    }

    fn count(&mut self, taken: usize) -> Result<(), Breach> {
        if matches!(self.place, Place::Sign) && self.open.is_empty() {
            (self.bytes, self.parts) = (0, 0); // the reply is complete
        } else {
            self.bytes += taken;
        }
        if self.bytes > MAX_BYTES { Err(Breach::Bytes) } else { Ok(()) }
    }

    fn number_ends(&mut self, sign: Sign) -> Result<(), Breach> {
        let text = std::str::from_utf8(&self.number)
            .ok()
            .and_then(|text| text.strip_suffix('\r'))
            .ok_or(Breach::Protocol)?;
        let number: i64 = text.parse().map_err(|_| Breach::Protocol)?;
        self.number.clear();
        match (sign, usize::try_from(number)) {
            (Sign::Integer, _) | (Sign::Bulk | Sign::List, Err(_)) | (Sign::List, Ok(0)) => {
                self.part_ends()
            }
            (Sign::Bulk, Ok(length)) => {
                if length > MAX_BYTES - self.bytes.min(MAX_BYTES) {
                    return Err(Breach::Bytes);
                }
                self.place = Place::Bulk(length + 2);
            }
            (Sign::List, Ok(parts)) => {
                if self.open.len() == MAX_DEPTH {
                    return Err(Breach::Depth);
                }
                self.parts = self.parts.saturating_add(parts as u64);
                if self.parts > MAX_PARTS {
                    return Err(Breach::Parts);
                }
                self.open.push(parts as u64);
                self.place = Place::Sign;
            }
        }
        Ok(())
    }

    /// A part is complete, and with it perhaps the lists around it.
    fn part_ends(&mut self) {
        self.place = Place::Sign;
        while let Some(left) = self.open.last_mut() {
            *left -= 1;
            if *left > 0 {
                break;
            }
            self.open.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// In pieces of so many bytes.
    fn pass(text: &[u8], piece: usize) -> Result<(), Breach> {
        let mut fence = Fence::new();
        text.chunks(piece).try_for_each(|piece| fence.pass(piece))
    }

    #[test]
    fn what_redis_answers_passes_in_any_pieces() {
        let replies = b"+PONG\r\n-ERR no\r\n:42\r\n$-1\r\n$0\r\n\r\n$5\r\nab\r\nc\r\n*-1\r\n*0\r\n*2\r\n$1\r\n0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n:1\r\n";
        for piece in 1..replies.len() {
            assert_eq!(pass(replies, piece), Ok(()), "{piece}");
        }
        let page =
            |keys: usize| format!("*2\r\n$1\r\n0\r\n*{keys}\r\n{}", "$3\r\nabc\r\n".repeat(keys));
        assert_eq!(
            pass(page(50_000).repeat(50).as_bytes(), 4096),
            Ok(()),
            "each reply is measured by itself"
        );
    }

    #[test]
    fn what_is_out_of_measure_does_not() {
        let long = "x".repeat(100_000);
        for (text, expected) in [
            ("*1\r\n".repeat(100_000), Breach::Depth),
            ("$2000000000\r\n".to_owned(), Breach::Bytes),
            (
                format!(
                    "*100000\r\n{}",
                    format!("$1000\r\n{}\r\n", "x".repeat(1_000)).repeat(20_000)
                ),
                Breach::Bytes,
            ),
            ("*1000000000\r\n".to_owned(), Breach::Parts),
            (format!("*9\r\n{}", "*100000\r\n".repeat(3)), Breach::Parts),
            (format!("-ERR \u{1b}[2J{long}\r\n"), Breach::Line),
            ("HTTP/1.1 400 Bad Request\r\n".to_owned(), Breach::Protocol),
            ("%1\r\n".to_owned(), Breach::Protocol),
            ("$x\r\n".to_owned(), Breach::Protocol),
            (format!(":{long}\r\n"), Breach::Protocol),
            ("\u{15}\u{3}\u{1}".to_owned(), Breach::Protocol),
        ] {
            for piece in [1, 7, 4096] {
                assert_eq!(pass(text.as_bytes(), piece), Err(expected), "{:.40}", text);
            }
        }
    }

    proptest! {
        #[test]
        fn the_pieces_do_not_matter(text in "([+:$*\\-0-9a\r\n]|\r\n|\\*1\r\n|\\$1\r\na\r\n){0,40}", piece in 1_usize..9) {
            prop_assert_eq!(pass(text.as_bytes(), piece), pass(text.as_bytes(), 1_000));
        }
    }
}
