//! Sets and maps as sorted vectors: for what is small, there by the ten thousand, made once and then read.
//!
//! A node of a `BTreeMap` has room for eleven entries; a Service has one or two virtual servers. A lookup is a binary
//! search, an insertion moves what comes behind, and whole collections are sorted once.

use std::{cmp::Ordering, iter, mem, ops::Deref, slice, vec};

/// A sorted set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set<T>(Vec<T>);

impl<T> Set<T> {
    /// Nothing.
    pub const fn new() -> Self {
        Self(Vec::new())
    }
}

impl<T: Ord> Set<T> {
    /// Whether the value is there.
    pub fn contains(&self, value: &T) -> bool {
        self.0.binary_search(value).is_ok()
    }

    /// Puts a value in; returns whether it was missing.
    pub fn insert(&mut self, value: T) -> bool {
        let place = self.0.binary_search(&value);
        if let Err(place) = place {
            insert(&mut self.0, place, value);
        }
        place.is_err()
    }

    /// Puts a value in, in the place of the one of the same key. The values are sorted by their keys, too.
    pub fn replace_by_key<K: Ord>(&mut self, value: T, key: impl Fn(&T) -> K) {
        match self.0.binary_search_by_key(&key(&value), key) {
            Ok(place) => {
                if let Some(known) = self.0.get_mut(place) {
                    *known = value;
                }
            }
            Err(place) => insert(&mut self.0, place, value),
        }
    }

    /// Takes out the value of this key.
    pub fn remove_by_key<K: Ord>(&mut self, known: &K, key: impl Fn(&T) -> K) {
        if let Ok(place) = self.0.binary_search_by_key(known, key) {
            self.0.remove(place);
        }
    }

    /// Takes a value out; returns whether it was there.
    pub fn remove(&mut self, value: &T) -> bool {
        let place = self.0.binary_search(value);
        place.map(|place| self.0.remove(place)).is_ok()
    }

    /// What becomes of the values, which keeps their order.
    pub fn map_in_order<U: Ord>(&self, value: impl Fn(&T) -> U) -> Set<U> {
        Set(self.0.iter().map(value).collect())
    }

    /// What is here but not in `other`.
    pub fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a T> {
        self.0.iter().filter(|value| !other.contains(value))
    }
}

impl<T> Default for Set<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Deref for Set<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Ord> FromIterator<T> for Set<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut values = Vec::from_iter(values);
        values.sort();
        values.dedup();
        values.shrink_to_fit();
        Self(values)
    }
}

impl<T: Ord> Extend<T> for Set<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, values: I) {
        let mut values = values.into_iter().peekable();
        if values.peek().is_some() {
            *self = mem::take(self).into_iter().chain(values).collect();
        }
    }
}

impl<T> IntoIterator for Set<T> {
    type Item = T;
    type IntoIter = vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Set<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// What is in either of two sets, by a key by which both are sorted and of which each has one: a value, its counterpart,
/// or both.
pub fn join<'a, A, B, K: Ord>(
    left: &'a Set<A>,
    left_key: impl Fn(&A) -> K,
    right: &'a Set<B>,
    right_key: impl Fn(&B) -> K,
) -> impl Iterator<Item = (Option<&'a A>, Option<&'a B>)> {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    iter::from_fn(move || {
        let order = match (left.peek(), right.peek()) {
            (Some(left), Some(right)) => left_key(left).cmp(&right_key(right)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        Some((left.next_if(|_| order.is_le()), right.next_if(|_| order.is_ge())))
    })
}

/// A map that is sorted by its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map<K, V>(Vec<(K, V)>);

impl<K: Ord, V> Map<K, V> {
    fn find(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(key))
    }

    /// Of entries that are sorted by their keys. Of several values of a key the last stays.
    pub fn from_sorted(mut entries: Vec<(K, V)>) -> Self {
        entries.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                mem::swap(later, kept);
            }
            same
        });
        entries.shrink_to_fit();
        Self(entries)
    }

    /// The key's value.
    pub fn get(&self, key: &K) -> Option<&V> {
        let (_, value) = self.0.get(self.find(key).ok()?)?;
        Some(value)
    }

    /// Whether the key is there.
    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// Gives a key this value.
    pub fn insert(&mut self, key: K, value: V) {
        match self.find(&key) {
            Ok(place) => {
                if let Some(entry) = self.0.get_mut(place) {
                    entry.1 = value;
                }
            }
            Err(place) => insert(&mut self.0, place, (key, value)),
        }
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let place = self.find(key).ok()?;
        Some(self.0.remove(place).1)
    }

    /// The keys whose values are accepted.
    pub fn keys_where(&self, accepts: impl Fn(&V) -> bool) -> Set<K>
    where
        K: Copy,
    {
        let mut keys = Vec::with_capacity(self.0.len());
        keys.extend(
            self.0
                .iter()
                .filter(|(_, value)| accepts(value))
                .map(|(key, _)| *key),
        );
        keys.shrink_to_fit();
        Set(keys)
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    /// The values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.0.iter().map(|(_, value)| value)
    }
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K, V> Deref for Map<K, V> {
    type Target = [(K, V)];

    fn deref(&self) -> &[(K, V)] {
        &self.0
    }
}

/// Of several values of a key the last stays.
impl<K: Ord, V> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut entries = Vec::from_iter(entries);
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self::from_sorted(entries)
    }
}

impl<'a, K, V> IntoIterator for &'a Map<K, V> {
    type Item = &'a (K, V);
    type IntoIter = slice::Iter<'a, (K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// Inserts where room for one more is room for one more: a vector's own growth begins with four, and doubles.
fn insert<T>(values: &mut Vec<T>, place: usize, value: T) {
    if values.len() == values.capacity() {
        values.reserve_exact(1 + values.len() / 2);
    }
    values.insert(place, value);
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_is_a_set(values: Vec<u8>, other: Vec<u8>, steps: Vec<(bool, u8)>) {
            let (mut set, mut expected) = (Set::from_iter(values.clone()), BTreeSet::from_iter(values));
            for (put, value) in steps {
                if put {
                    prop_assert_eq!(set.insert(value), expected.insert(value));
                } else {
                    prop_assert_eq!(set.remove(&value), expected.remove(&value));
                }
                prop_assert_eq!(set.contains(&value), put);
            }
            prop_assert!(set.iter().eq(&expected));
            let (others, expected_others) = (Set::from_iter(other.clone()), BTreeSet::from_iter(other.clone()));
            prop_assert!(set.difference(&others).eq(expected.difference(&expected_others)));
            set.extend(other.clone());
            expected.extend(other);
            prop_assert!(set.iter().eq(&expected));
        }

        #[test]
        fn a_map_is_a_map(entries: Vec<(u8, u16)>, steps: Vec<(u8, Option<u16>)>) {
            let mut map = Map::from_iter(entries.clone());
            let mut expected = BTreeMap::from_iter(entries);
            for (key, value) in steps {
                match value {
                    Some(value) => {
                        map.insert(key, value);
                        expected.insert(key, value);
                    }
                    None => prop_assert_eq!(map.remove(&key), expected.remove(&key)),
                }
                prop_assert_eq!(map.get(&key), expected.get(&key));
                prop_assert_eq!(map.contains_key(&key), value.is_some());
            }
            prop_assert!(map.keys().eq(expected.keys()) && map.values().eq(expected.values()));
        }

        #[test]
        fn a_set_by_keys_is_a_map(steps: Vec<(u8, Option<u16>)>) {
            let (mut set, mut expected) = (Set::new(), BTreeMap::new());
            let key = |(key, _): &(u8, u16)| *key;
            for (known, value) in steps {
                match value {
                    Some(value) => {
                        set.replace_by_key((known, value), key);
                        expected.insert(known, value);
                    }
                    None => {
                        set.remove_by_key(&known, key);
                        expected.remove(&known);
                    }
                }
                prop_assert!(set.iter().copied().eq(expected.clone()));
            }
        }

        #[test]
        fn a_join_has_everything_once(left: BTreeMap<u8, u16>, right: BTreeMap<u8, u16>) {
            let (lefts, rights) = (Set::from_iter(left.clone()), Set::from_iter(right.clone()));
            let key = |(key, _): &(u8, u16)| *key;
            let joined: Vec<_> = join(&lefts, key, &rights, key)
                .map(|(left, right)| (left.copied(), right.copied()))
                .collect();
            let keys: BTreeSet<_> = left.keys().chain(right.keys()).copied().collect();
            let entry = |of: &BTreeMap<u8, u16>, key| of.get(&key).map(|value| (key, *value));
            let expected: Vec<_> = keys
                .into_iter()
                .map(|key| (entry(&left, key), entry(&right, key)))
                .collect();
            prop_assert_eq!(joined, expected);
        }

        #[test]
        fn keys_are_a_set_and_stay_one(entries: Vec<(u8, u16)>) {
            let map = Map::from_iter(entries.clone());
            let is_even = |value: &u16| value.is_multiple_of(2);
            let mut expected = BTreeMap::from_iter(entries);
            let all = map.keys_where(|_| true);
            prop_assert!(all.iter().eq(expected.keys()));
            prop_assert!(all.map_in_order(|key| (*key, expected[key])).iter().eq(map.iter()));
            expected.retain(|_, value| is_even(value));
            prop_assert!(map.keys_where(is_even).iter().eq(expected.keys()));
        }
    }
}
