//! Splits Rust source into tokens. Comments are dropped; the content of a string is one token.

use std::{iter::Peekable, str::Chars};

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// An identifier or a keyword.
    Word(String),
    /// `::`, or one character of punctuation.
    Mark(&'static str),
    /// The content of a string, without its quotes.
    Text(String),
    /// A number, a character or a lifetime.
    Other,
}

impl Token {
    pub fn is(&self, text: &str) -> bool {
        match self {
            Self::Word(word) => word == text,
            Self::Mark(mark) => *mark == text,
            Self::Text(_) | Self::Other => false,
        }
    }

    pub fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// A token and its line number, from 1.
pub type Placed = (Token, usize);

const MARKS: [&str; 28] = [
    "{", "}", "(", ")", "[", "]", "<", ">", ";", ",", ":", "=", "#", "!", "?", "&", "*", "+", "-",
    "/", "%", "^", "|", "@", "$", ".", "~", "\\",
];

pub fn tokens(text: &str) -> Vec<Placed> {
    Lexer { rest: text.chars().peekable(), line: 1 }.all()
}

struct Lexer<'a> {
    rest: Peekable<Chars<'a>>,
    line: usize,
}

impl Lexer<'_> {
    fn all(mut self) -> Vec<Placed> {
        let mut found = Vec::new();
        loop {
            let line = self.line;
            let Some(c) = self.next() else { return found };
            if let Some(token) = self.token(c) {
                found.push((token, line));
            }
        }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn next_if(&mut self, wanted: char) -> bool {
        self.rest.peek() == Some(&wanted) && self.next().is_some()
    }

    fn token(&mut self, first: char) -> Option<Token> {
        match first {
            c if c.is_whitespace() => None,
            '/' if self.next_if('/') => {
                while self.rest.peek().is_some_and(|c| *c != '\n') {
                    self.next();
                }
                None
            }
            '/' if self.next_if('*') => {
                self.block_comment();
                None
            }
            '"' => Some(Token::Text(self.string())),
            '\'' => Some(self.quote()),
            ':' if self.next_if(':') => Some(Token::Mark("::")),
            c if c == '_' || c.is_alphabetic() => Some(self.word(c)),
            c if c.is_ascii_digit() => {
                self.name(c);
                Some(Token::Other)
            }
            c => {
                let mark = MARKS.iter().find(|mark| mark.starts_with(c));
                Some(Token::Mark(mark.unwrap_or_else(|| panic!("`{c}` in line {}", self.line))))
            }
        }
    }

    /// Block comments nest.
    fn block_comment(&mut self) {
        let mut depth = 1;
        while depth > 0 {
            match self.next().expect("the end of a comment") {
                '*' if self.next_if('/') => depth -= 1,
                '/' if self.next_if('*') => depth += 1,
                _ => {}
            }
        }
    }

    fn string(&mut self) -> String {
        let mut content = String::new();
        loop {
            match self.next().expect("the end of a string") {
                '"' => return content,
                '\\' => content.extend(['\\', self.next().expect("an escaped character")]),
                c => content.push(c),
            }
        }
    }

    /// After `r`: `"..."` or `#"..."#`.
    fn raw_string(&mut self, hashes: usize) -> String {
        let end = format!("\"{}", "#".repeat(hashes));
        let mut content = String::new();
        while !content.ends_with(&end) {
            content.push(self.next().expect("the end of a raw string"));
        }
        content.truncate(content.len() - end.len());
        content
    }

    /// `'a'` and `'\n'` are characters, `'a` is a lifetime.
    fn quote(&mut self) -> Token {
        if self.next_if('\\') {
            self.next();
            while self.next().expect("the end of a character") != '\'' {}
            return Token::Other;
        }
        let c = self.next().expect("a character or a lifetime");
        if !self.next_if('\'') && (c == '_' || c.is_alphabetic()) {
            self.name(c);
        }
        Token::Other
    }

    fn name(&mut self, first: char) -> String {
        let mut name = String::from(first);
        while let Some(c) = self.rest.peek().filter(|c| **c == '_' || c.is_alphanumeric()) {
            name.push(*c);
            self.next();
        }
        name
    }

    /// A word, or the string of which it is the prefix: `r"..."`, `br#"..."#`, `b'x'`, `r#type`.
    fn word(&mut self, first: char) -> Token {
        let word = self.name(first);
        match (word.as_str(), self.rest.peek()) {
            ("b" | "c", Some('"')) => {
                self.next();
                Token::Text(self.string())
            }
            ("b", Some('\'')) => {
                self.next();
                self.quote()
            }
            ("r" | "br" | "cr", Some('"' | '#')) => {
                let mut hashes = 0;
                while self.next_if('#') {
                    hashes += 1;
                }
                if self.next_if('"') {
                    return Token::Text(self.raw_string(hashes));
                }
                let c = self.next().expect("a raw identifier");
                Token::Word(self.name(c))
            }
            _ => Token::Word(word),
        }
    }
}

#[test]
fn comments_and_strings_are_not_read_as_code() {
    let text = r####"
        a // crate::b
        /* c /* d */ e */ f "g \" h" r#"i " j"# br"k" b'l' 'm' '\'' '"' 'n: r#type 1_000u64 "{" '{'
    "####;
    let words: Vec<_> = tokens(text).into_iter().filter(|(t, _)| t.word().is_some()).collect();
    let word = |text: &str, line| (Token::Word(text.to_owned()), line);
    assert_eq!(words, [word("a", 2), word("f", 3), word("type", 3)]);
    assert!(!tokens(text).iter().any(|(t, _)| t.is("{")));
}
