//! The table as it is in the program: numbers and one text. Each pointer to a text would have to be relocated at each
//! start, on ten pages that each machine would then have a copy of.

use super::{Class, Field, Release};

/// A part of all the texts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    at: u32,
    len: u16,
}

/// All fields, and the texts that they have, one after the other.
pub(super) struct Packed<const FIELDS: usize, const BYTES: usize> {
    pub(super) fields: [Field<Text>; FIELDS],
    pub(super) texts: [u8; BYTES],
}

const NO_TEXT: Text = Text { at: 0, len: 0 };

/// Bytes that the texts of `fields` have in all.
pub(super) const fn size(fields: &[Field]) -> usize {
    let (mut sum, mut index) = (0, 0);
    while index < fields.len() {
        let Field {
            path, value, class, ..
        } = fields[index];
        sum += path.len();
        if let Some(value) = value {
            sum += value.len();
        }
        sum += match class {
            Class::Adapted(text) | Class::NoEffect(text) => text.len(),
            Class::Refused { reason, way_out } => reason.len() + way_out.len(),
            Class::Honoured | Class::OfThePod | Class::OfTheCluster => 0,
        };
        index += 1;
    }
    sum
}

/// Packs `fields`, whose texts have so many bytes.
pub(super) const fn pack<const FIELDS: usize, const BYTES: usize>(
    fields: &[Field],
) -> Packed<FIELDS, BYTES> {
    let empty = Field {
        path: NO_TEXT,
        value: None,
        class: Class::Honoured,
        since: Release::First,
    };
    let mut packed = Packed {
        fields: [empty; FIELDS],
        texts: [0; BYTES],
    };
    let (mut end, mut index) = (0, 0);
    while index < FIELDS {
        let Field {
            path,
            value,
            class,
            since,
        } = fields[index];
        let texts = &mut packed.texts;
        packed.fields[index] = Field {
            path: put(texts, &mut end, path),
            value: match value {
                Some(value) => Some(put(texts, &mut end, value)),
                None => None,
            },
            class: match class {
                Class::Honoured => Class::Honoured,
                Class::Adapted(notice) => Class::Adapted(put(texts, &mut end, notice)),
                Class::NoEffect(reason) => Class::NoEffect(put(texts, &mut end, reason)),
                Class::OfThePod => Class::OfThePod,
                Class::OfTheCluster => Class::OfTheCluster,
                Class::Refused { reason, way_out } => Class::Refused {
                    reason: put(texts, &mut end, reason),
                    way_out: put(texts, &mut end, way_out),
                },
            },
            since,
        };
        index += 1;
    }
    packed
}

const fn put(texts: &mut [u8], end: &mut usize, text: &str) -> Text {
    let at = *end;
    *end += text.len();
    let (_, room) = texts.split_at_mut(at);
    let (room, _) = room.split_at_mut(text.len());
    room.copy_from_slice(text.as_bytes());
    assert!(at <= u32::MAX as usize && text.len() <= u16::MAX as usize);
    Text {
        at: at as u32,
        len: text.len() as u16,
    }
}

impl Text {
    /// The part of all the texts that it is.
    pub(super) fn of(self, texts: &'static str) -> &'static str {
        let at = self.at as usize;
        texts
            .get(at..at + usize::from(self.len))
            .unwrap_or_default()
    }
}

impl Field<Text> {
    /// The field with its texts.
    pub(super) fn unpack(self, texts: &'static str) -> Field {
        let text = |text: Text| text.of(texts);
        Field {
            path: text(self.path),
            value: self.value.map(text),
            class: match self.class {
                Class::Honoured => Class::Honoured,
                Class::Adapted(notice) => Class::Adapted(text(notice)),
                Class::NoEffect(reason) => Class::NoEffect(text(reason)),
                Class::OfThePod => Class::OfThePod,
                Class::OfTheCluster => Class::OfTheCluster,
                Class::Refused { reason, way_out } => Class::Refused {
                    reason: text(reason),
                    way_out: text(way_out),
                },
            },
            since: self.since,
        }
    }
}
