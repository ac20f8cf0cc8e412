//! Maps as documents: those who ask for the same one share its text for as long as it takes them to read it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use axum::body::Bytes;

use crate::map::ExpertMap;

/// The documents that are being read, by model.
#[derive(Debug, Default)]
pub(super) struct Documents(Mutex<BTreeMap<String, (ExpertMap, Weak<String>)>>);

struct Text(Arc<String>);

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl Documents {
    /// The map's document.
    pub(super) fn of(&self, map: &ExpertMap) -> Bytes {
        // What is in it is whole whenever it is let go.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (_, text)| text.strong_count() > 0);
        let there = all.get(map.model()).filter(|(of, _)| of == map);
        let text = there.and_then(|(_, text)| text.upgrade()).unwrap_or_else(|| {
            let text = Arc::new(map.to_json());
            all.insert(map.model().to_owned(), (map.clone(), Arc::downgrade(&text)));
            text
        });
        Bytes::from_owner(Text(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::fake;

    #[test]
    fn who_asks_for_the_same_map_gets_the_same_text() {
        let parse = |epoch| ExpertMap::parse(fake::map("m", epoch, &[0], false).as_bytes()).unwrap();
        let documents = Documents::default();
        let first = documents.of(&parse(1));
        assert_eq!(first, parse(1).to_json().as_bytes());
        assert_eq!(documents.of(&parse(1)).as_ptr(), first.as_ptr());
        let second = documents.of(&parse(2));
        assert_eq!(second, parse(2).to_json().as_bytes());
        drop((first, second));
        documents.of(&parse(3));
        assert_eq!(documents.0.lock().unwrap().len(), 1);
    }
}
