//! Check digits. All functions take ASCII digits, except where something else is said.

fn value(byte: u8) -> u32 {
    u32::from(byte.wrapping_sub(b'0'))
}

fn weighted(digits: &[u8], weights: &[u32]) -> u32 {
    digits.iter().zip(weights).map(|(digit, weight)| value(*digit) * weight).sum()
}

/// Of payment cards.
pub fn luhn(digits: &[u8]) -> bool {
    let doubled = |(i, digit): (usize, &u8)| match value(*digit) {
        n if i % 2 == 0 => n,
        n if n > 4 => 2 * n - 9,
        n => 2 * n,
    };
    !digits.is_empty()
        && digits.iter().rev().enumerate().map(doubled).sum::<u32>().is_multiple_of(10)
}

/// Of bank accounts (ISO 7064, mod 97-10); digits and letters.
pub fn iban(account: &[u8]) -> bool {
    let Some((head, tail)) = account.split_at_checked(4) else { return false };
    let mut rest = 0;
    for byte in tail.iter().chain(head) {
        rest = match byte {
            b'0'..=b'9' => rest * 10 + value(*byte),
            letter => rest * 100 + u32::from(letter.to_ascii_uppercase() - b'A') + 10,
        } % 97;
    }
    rest == 1
}

/// Whether a number of the USA may have been given out: `123-45-6789`.
pub fn ssn(text: &[u8]) -> bool {
    let [area, group, serial] = [&text[..3], &text[4..6], &text[7..]];
    !matches!(area, b"000" | b"666") && area[0] != b'9' && group != b"00" && serial != b"0000"
}

/// Of China (GB 11643): 17 digits, and a digit or `X`.
pub fn chinese(id: &[u8]) -> bool {
    const WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    let expected = b"10X98765432"[(weighted(id, &WEIGHTS) % 11) as usize];
    id.len() == 18 && is_date(&id[10..12], &id[12..14]) && id[17].to_ascii_uppercase() == expected
}

fn is_date(month: &[u8], day: &[u8]) -> bool {
    let number = |text: &[u8]| text.iter().fold(0, |n, digit| n * 10 + value(*digit));
    (1..=12).contains(&number(month)) && (1..=31).contains(&number(day))
}

/// Of Brazil (CPF): 11 digits.
pub fn brazilian(digits: &[u8]) -> bool {
    let check = |length: usize| {
        let sum: u32 = (0..length).map(|i| value(digits[i]) * (length + 1 - i) as u32).sum();
        sum * 10 % 11 % 10 == value(digits[length])
    };
    digits.len() == 11 && digits.iter().any(|d| *d != digits[0]) && check(9) && check(10)
}

/// Of Spain (DNI, NIE): 8 digits, of which the first may be `X`, `Y` or `Z`, and a letter.
pub fn spanish(id: &[u8]) -> bool {
    let [first, digits @ .., letter] = id else { return false };
    let first = match first {
        b'X' | b'Y' | b'Z' => u32::from(first - b'X'),
        digit => value(*digit),
    };
    let number = digits.iter().fold(first, |n, digit| n * 10 + value(*digit));
    b"TRWAGMYFPDXBNJZSQVHLCKE"[(number % 23) as usize] == *letter
}

/// Of Italy (codice fiscale): 16 digits and capital letters.
pub fn italian(code: &[u8]) -> bool {
    const ODD: [u32; 26] = [
        1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
        23,
    ];
    let sum: u32 = code[..15]
        .iter()
        .enumerate()
        .map(|(i, byte)| {
            let digit = byte.is_ascii_digit();
            let place = if digit { value(*byte) } else { u32::from(byte - b'A') };
            if i % 2 == 0 { ODD[place as usize] } else { place }
        })
        .sum();
    u32::from(code[15] - b'A') == sum % 26
}

/// Of France (NIR): 15 digits.
pub fn french(digits: &[u8]) -> bool {
    let number = |text: &[u8]| text.iter().fold(0u64, |n, d| n * 10 + u64::from(value(*d)));
    digits.len() == 15 && 97 - number(&digits[..13]) % 97 == number(&digits[13..])
}

/// Of Poland (PESEL): 11 digits. The century is told by what is added to the month.
pub fn polish(digits: &[u8]) -> bool {
    const WEIGHTS: [u32; 11] = [1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1];
    let month = [b'0' + (value(digits[2]) % 2) as u8, digits[3]];
    is_date(&month, &digits[4..6]) && weighted(digits, &WEIGHTS).is_multiple_of(10)
}

/// Of India (Aadhaar): 12 digits, by Verhoeff's scheme.
pub fn indian(digits: &[u8]) -> bool {
    const PERMUTED: [[u8; 10]; 8] = [
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        [1, 5, 7, 6, 2, 8, 3, 0, 9, 4],
        [5, 8, 0, 3, 7, 9, 6, 1, 4, 2],
        [8, 9, 1, 6, 0, 4, 3, 5, 2, 7],
        [9, 4, 5, 3, 1, 2, 6, 8, 7, 0],
        [4, 2, 8, 6, 5, 7, 3, 9, 0, 1],
        [2, 7, 9, 3, 8, 0, 6, 4, 1, 5],
        [7, 0, 4, 6, 9, 1, 3, 2, 5, 8],
    ];
    /// The group of the symmetries of a pentagon.
    fn multiplied(a: u8, b: u8) -> u8 {
        match (a < 5, b < 5) {
            (true, true) => (a + b) % 5,
            (true, false) => (a + b - 5) % 5 + 5,
            (false, true) => (a - 5 + 5 - b) % 5 + 5,
            (false, false) => (a + 5 - b) % 5,
        }
    }
    let fold = |sum, (i, digit): (usize, &u8)| {
        multiplied(sum, PERMUTED[i % 8][value(*digit) as usize % 10])
    };
    digits.iter().rev().enumerate().fold(0, fold) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers_are_valid_and_their_neighbours_are_not() {
        type Check = fn(&[u8]) -> bool;
        let cases: [(Check, &str, &str); 11] = [
            (luhn, "4111111111111111", "4111111111111112"),
            (luhn, "378282246310005", "378282246310015"),
            (iban, "DE89370400440532013000", "DE89370400440532013001"),
            (iban, "GB82WEST12345698765432", "GB82WEST12345698765423"),
            (chinese, "11010519491231002X", "110105194912310021"),
            (brazilian, "52998224725", "52998224726"),
            (spanish, "12345678Z", "12345678A"),
            (spanish, "X1234567L", "X1234567M"),
            (italian, "RSSMRA85T10A562S", "RSSMRA85T10A562T"),
            (polish, "44051401359", "44051401358"),
            (ssn, "123-45-6789", "666-45-6789"),
        ];
        for (check, good, bad) in cases {
            assert!(check(good.as_bytes()), "{good}");
            assert!(!check(bad.as_bytes()), "{bad}");
        }
        assert!(!brazilian(b"11111111111"));
    }

    #[test]
    fn a_wrong_digit_and_swapped_digits_are_noticed() {
        // 236 has the check digit 3, by Verhoeff's own example.
        assert!(indian(b"2363") && !indian(b"2364") && !indian(b"2633"));
        let number = 2_550_781_480_123u64 / 10;
        let text = format!("{number:013}{:02}", 97 - number % 97);
        assert!(french(text.as_bytes()));
        let wrong = format!("{number:013}{:02}", 1 + number % 97);
        assert!(!french(wrong.as_bytes()) || wrong == text);
    }
}
