//! Hashes of the beginnings of prompts, block by block: equal beginnings have equal hashes.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Hashes of the beginnings of `text` that end at a multiple of `block` bytes, the shortest first, at most
/// `most` of them. Bytes after the last complete block are ignored. `scope` separates texts that must not
/// match: of another model or another tenant.
pub fn blocks(scope: u64, text: &[u8], block: usize, most: usize) -> Vec<u64> {
    let mut so_far = scope;
    text.chunks_exact(block.max(1))
        .take(most)
        .map(|bytes| {
            so_far = xxh3_64_with_seed(bytes, so_far);
            so_far
        })
        .collect()
}

/// A hash of several words, the same in every process. The boundaries of the words matter.
pub fn words(words: &[&[u8]]) -> u64 {
    words.iter().fold(0, |so_far, word| xxh3_64_with_seed(word, so_far))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equal_beginnings_have_equal_hashes(
            same in "[ab]{0,64}", one in "[cd]{0,64}", other in "[ef]{0,64}", block in 1usize..20,
        ) {
            let of = |tail: &str| blocks(7, format!("{same}{tail}").as_bytes(), block, 1000);
            let (one, other) = (of(&one), of(&other));
            let shared = one.iter().zip(&other).take_while(|(a, b)| a == b).count();
            let short = one.len().min(other.len());
            prop_assert_eq!(shared, (same.len() / block).min(short));
        }
    }

    #[test]
    fn scopes_do_not_meet_and_nothing_is_endless() {
        let text = [b'x'; 1000];
        assert_ne!(blocks(1, &text, 100, 9), blocks(2, &text, 100, 9));
        assert_eq!(blocks(1, &text, 100, 9).len(), 9);
        assert_eq!(blocks(1, &text[..99], 100, 9).len(), 0);
        assert_eq!(blocks(1, &text, 0, 3).len(), 3);
        assert_ne!(words(&[b"ab", b"c"]), words(&[b"a", b"bc"]));
    }
}
