//! Where in the text the fields of a document are. Looked up once there is an error to tell: the values
//! themselves do not know.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::words::join;

/// A place in a text: line and column, from 1.
pub(super) type Place = (u64, u64);

/// The places of the parts of a value.
#[derive(Debug)]
pub(super) enum Places {
    Scalar,
    List(Vec<(Place, Places)>),
    Object(Vec<(String, Place, Places)>),
}

impl Places {
    /// The place of what is nearest to `wanted`, if anything of it is in this value, which is at `path`.
    pub(super) fn find(&self, path: &str, wanted: &str) -> Option<Place> {
        let enter = |child: &str, place: Place, parts: &Self| {
            let rest = wanted.strip_prefix(child)?;
            let inside = rest.is_empty() || rest.starts_with(['.', '[']);
            inside.then(|| parts.find(child, wanted).unwrap_or(place))
        };
        match self {
            Self::Scalar => None,
            Self::List(items) => items
                .iter()
                .enumerate()
                .find_map(|(index, (place, parts))| {
                    enter(&format!("{path}[{index}]"), *place, parts)
                }),
            Self::Object(fields) => fields
                .iter()
                .find_map(|(name, place, parts)| enter(&join(path, name), *place, parts)),
        }
    }
}

fn place<T>(spanned: &Spanned<T>) -> Place {
    (spanned.referenced.line(), spanned.referenced.column())
}

impl<'de> Deserialize<'de> for Places {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlacesVisitor)
    }
}

struct PlacesVisitor;

/// Nothing of a scalar is kept.
macro_rules! scalars {
    ($($visit:ident($type:ty)),*) => {
        $(fn $visit<E>(self, _: $type) -> Result<Places, E> {
            Ok(Places::Scalar)
        })*
    };
}

impl<'de> Visitor<'de> for PlacesVisitor {
    type Value = Places;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    scalars!(
        visit_bool(bool),
        visit_i64(i64),
        visit_u64(u64),
        visit_i128(i128),
        visit_u128(u128)
    );
    scalars!(visit_f64(f64), visit_str(&str));

    fn visit_unit<E>(self) -> Result<Places, E> {
        Ok(Places::Scalar)
    }

    fn visit_none<E>(self) -> Result<Places, E> {
        Ok(Places::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Places, D::Error> {
        Places::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Places, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Places>>()? {
            list.push((place(&item), item.value));
        }
        Ok(Places::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Places, A::Error> {
        let mut object = Vec::new();
        while let Some(name) = fields.next_key::<Spanned<String>>()? {
            let at = place(&name);
            object.push((name.value, at, fields.next_value()?));
        }
        Ok(Places::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_elements_are_found() {
        let text = "a: 1\nb:\n  - c: [2, 3]\n    \"d.e\": ~\n  - x\nf: {g: \"h\"}\n";
        let places: Places = serde_saphyr::from_str(text).expect("YAML");
        for (path, place) in [
            ("a", (1, 1)),
            ("b", (2, 1)),
            ("b[0].c[1]", (3, 12)),
            ("b[0][\"d.e\"]", (4, 5)),
            ("b[1].missing", (5, 5)),
            ("f.g", (6, 5)),
            ("f.missing.too", (6, 1)),
        ] {
            assert_eq!(places.find("", path), Some(place), "{path}");
        }
        assert_eq!(places.find("", "missing"), None);
    }
}
