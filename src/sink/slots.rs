//! Which slot of a cluster a key is in, which primary has it, and what a node says of a key that it
//! has not.
//!
//! Pure but for fred's types. The specification:
//! <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>.

use std::collections::BTreeMap;

use fred::types::{Key, Value};

use super::url::Node;

/// How many there are.
pub(super) const SLOTS: u16 = 16_384;

/// The slot of a key: of what is between its first brace and the next, if something is, else of the
/// whole.
#[must_use]
pub fn slot(key: &[u8]) -> u16 {
    let tagged = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter()
            .position(|&byte| byte == b'}')
            .filter(|&length| length > 0)
            .map(|length| &rest[..length])
    });
    crc16(tagged.unwrap_or(key)) % SLOTS
}

/// A key beside its slot.
pub(super) fn beside(key: Key) -> (u16, Key) {
    (slot(key.as_bytes()), key)
}

/// XMODEM: polynomial 0x1021, beginning with 0.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)])
}

const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = ((byte as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The shortest number that lies in this slot, as a hash tag.
pub(super) fn tag(wanted: u16) -> String {
    (0_u32..)
        .map(|number| number.to_string())
        .find(|text| slot(text.as_bytes()) == wanted)
        .unwrap_or_default()
}

/// What a node says of keys that it has not, or not all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Redirect {
    /// Another one has the slot.
    Moved,
    /// They are there already; the slot is not. No host: at that of who says so.
    Ask(Node),
    /// Some are here and some there.
    Apart,
}

impl Redirect {
    /// Reads `MOVED 3999 127.0.0.1:6381`, `ASK 3999 [::1]:6381`, `TRYAGAIN ...`.
    pub(super) fn read(words: &str) -> Option<Self> {
        let mut words = words.split_whitespace();
        match words.next()? {
            "MOVED" => Some(Self::Moved),
            "TRYAGAIN" => Some(Self::Apart),
            "ASK" => {
                let (host, port) = words.nth(1)?.rsplit_once(':')?;
                Some(Self::Ask((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?)))
            }
            _ => None,
        }
    }
}

/// A primary, as a node sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Seen {
    /// Its name in the cluster.
    pub(super) id: String,
    pub(super) address: Node,
    /// First and last of each range, in order.
    pub(super) ranges: Vec<(u16, u16)>,
}

/// What a node sees: the answer to CLUSTER SLOTS. `asked`: its host, which it may leave out.
pub(super) fn view(answer: Value, asked: &str) -> Option<Vec<Seen>> {
    let mut primaries: BTreeMap<String, Seen> = BTreeMap::new();
    for range in answer.into_array() {
        let Value::Array(range) = range else { return None };
        let mut parts = range.into_iter();
        let (first, last) = (number(&parts.next()?)?, number(&parts.next()?)?);
        let Some(Value::Array(primary)) = parts.next() else { continue };
        let [host, port, id, ..] = &primary[..] else { return None };
        let host = host
            .as_string()
            .filter(|host| !host.is_empty() && host != "?")
            .unwrap_or_else(|| asked.to_owned());
        let id = id.as_string()?;
        let seen = Seen { id: id.clone(), address: (host, number(port)?), ranges: Vec::new() };
        primaries
            .entry(id)
            .or_insert(seen)
            .ranges
            .push((first.min(SLOTS - 1), last.min(SLOTS - 1)));
    }
    let mut primaries: Vec<_> = primaries.into_values().collect();
    primaries.iter_mut().for_each(|seen| seen.ranges.sort_unstable());
    primaries.sort_by_key(|seen| seen.ranges.first().copied());
    (!primaries.is_empty()).then_some(primaries)
}

fn number(value: &Value) -> Option<u16> {
    value.as_i64()?.try_into().ok()
}

/// The slots that a node is about to give away or to take in, of its own line in the answer to
/// CLUSTER NODES: `[93-<-292f...]`.
pub(super) fn open_slots(nodes: &str) -> Vec<String> {
    let own = nodes
        .lines()
        .filter(|line| line.split(' ').nth(2).is_some_and(|flags| flags.contains("myself")));
    own.flat_map(|line| line.split(' ').filter(|word| word.starts_with('[')))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // Said by CLUSTER KEYSLOT of Redis 7.0.15.
        for (key, expected) in [
            ("123456789", 12739),
            ("foo", 12182),
            ("{user1000}.following", 3443),
            ("foo{}{bar}", 8363),
            ("foo{{bar}}zap", 4015),
            ("", 0),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn each_slot_has_a_tag() {
        for wanted in [0, 1, 5461, 8192, SLOTS - 1] {
            assert_eq!(slot(format!("unstale:mark:eu1:{{{}}}", tag(wanted)).as_bytes()), wanted);
        }
    }

    #[test]
    fn a_redirection_is_read_and_an_error_is_none() {
        assert_eq!(Redirect::read("MOVED 3999 127.0.0.1:6381"), Some(Redirect::Moved));
        assert_eq!(
            Redirect::read("ASK 3999 h-1.example:6381"),
            Some(Redirect::Ask(("h-1.example".into(), 6381)))
        );
        assert_eq!(
            Redirect::read("ASK 3999 [::1]:6381"),
            Some(Redirect::Ask(("::1".into(), 6381)))
        );
        assert_eq!(
            Redirect::read("TRYAGAIN Multiple keys request during rehashing of slot"),
            Some(Redirect::Apart)
        );
        assert_eq!(Redirect::read("MISCONF no"), None);
        assert_eq!(Redirect::read("ASK"), None);
    }

    #[test]
    fn slots_on_their_way_are_those_of_the_node_itself() {
        let nodes = "07c3 127.0.0.1:30004@31004,host4 slave e7d1 0 1426238317239 4 connected\n\
                     e7d1 127.0.0.1:30001@31001 myself,master - 0 0 1 connected 0-5460 [5461->-67ed] [77-<-07c3]\n\
                     67ed 127.0.0.1:30002@31002 master - 0 1426238316232 2 connected 5461-10922 [1->-e7d1]";
        assert_eq!(open_slots(nodes), ["[5461->-67ed]", "[77-<-07c3]"]);
    }
}
