//! Personal data in requests: masked by placeholders, or refused.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{
    detect::{Detector, detectors},
    finding::{Finding, Refused},
    inner::{Piece, pieces},
    role::in_roles,
    vault::{Numbering, Vault},
};
use crate::{
    base::Rejection,
    config::{choices::RedactAction, plan::RedactPlan},
    dialect::texts::RequestText,
    wire::{
        edit::Edit,
        json,
        literal::{Literal, escaped},
        pattern::Patterns,
    },
};

/// What one rule looks for.
enum Search<'a> {
    Kind(&'static Detector),
    Own(&'a str, &'a Arc<Patterns>),
}

/// One kind of an entry.
struct Rule<'a> {
    entry: &'a RedactPlan,
    search: Search<'a>,
}

impl Rule<'_> {
    /// Its name in messages and metrics.
    fn kind(&self) -> String {
        match &self.search {
            Search::Kind(detector) => detector.kind.to_owned(),
            Search::Own(name, _) => name.to_ascii_lowercase(),
        }
    }

    fn label(&self) -> &str {
        match &self.search {
            Search::Kind(detector) => detector.label,
            Search::Own(name, _) => name,
        }
    }

    fn find_all(&self, text: &str) -> Vec<Range<usize>> {
        match &self.search {
            Search::Kind(detector) => detector.find_all(text),
            Search::Own(_, patterns) => patterns.find_all(text).map(|(_, range)| range).collect(),
        }
    }

    fn refuses(&self) -> bool {
        self.entry.action == RedactAction::Refuse
    }
}

/// What was found in a request.
pub struct Redacted {
    /// The edits that put placeholders in the place of values.
    pub edits: Vec<Edit>,
    /// The values that the answer gets back.
    pub vault: Option<Vault>,
    pub findings: Vec<Finding>,
}

/// Looks for personal data in the texts of a body. `json`: the content of the answer will be JSON.
///
/// # Errors
/// If an entry that applies refuses what was found.
pub fn redact(
    entries: &[&RedactPlan],
    texts: &[RequestText],
    body: &[u8],
    json: bool,
) -> Result<Redacted, Box<Refused>> {
    let rules = rules(entries);
    let mut work = Work { rules: &rules, numbering: Numbering::default(), edits: Vec::new() };
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for text in texts {
        let Some(literal) = body.get(text.range.clone()).and_then(Literal::read) else { continue };
        for piece in pieces(&literal.text, text.embedded) {
            for (rule, range) in work.find(text, piece.text()) {
                if let Some(rule) = rule {
                    *counts.entry(rule).or_default() += 1;
                }
                if !text.sealed {
                    work.mask(rule, (text, &literal), &piece, range);
                }
            }
        }
    }
    let finding = |(rule, count): (&usize, &usize)| {
        let rule = &rules[*rule];
        let action = if rule.refuses() { "refuse" } else { "mask" };
        Finding { guard: "redact", kind: rule.kind(), action, count: *count }
    };
    let findings: Vec<Finding> = counts.iter().map(finding).collect();
    let refused: Vec<usize> =
        counts.keys().copied().filter(|rule| rules[*rule].refuses()).collect();
    if let Some(first) = refused.first() {
        let mut kinds: Vec<String> = refused.iter().map(|rule| rules[*rule].kind()).collect();
        kinds.dedup();
        let rejection = Rejection::personal_data(rules[*first].entry.status, &kinds.join(", "));
        let refusing = findings.into_iter().filter(|finding| finding.action == "refuse").collect();
        return Err(Box::new(Refused { rejection, findings: refusing }));
    }
    Ok(Redacted { edits: work.edits, vault: work.numbering.vault(json), findings })
}

/// The rules of these entries, by their precedence: first those that refuse, then own patterns, then kinds.
fn rules<'a>(entries: &[&'a RedactPlan]) -> Vec<Rule<'a>> {
    let mut rules = Vec::new();
    for entry in entries {
        let own = entry.names.iter().zip(&entry.patterns);
        rules.extend(own.map(|(name, p)| Rule { entry, search: Search::Own(name, p) }));
    }
    for entry in entries {
        let kinds = detectors(&entry.kinds);
        rules.extend(kinds.map(|kind| Rule { entry, search: Search::Kind(kind) }));
    }
    rules.sort_by_key(|rule| !rule.refuses());
    rules
}

struct Work<'a, 'b> {
    rules: &'b [Rule<'a>],
    numbering: Numbering,
    edits: Vec<Edit>,
}

/// A rule and where it found something; without a rule it is a placeholder that the client has written.
type Found = (Option<usize>, Range<usize>);

impl Work<'_, '_> {
    /// What is found in a piece, in its order, without overlaps.
    fn find(&self, text: &RequestText, piece: &str) -> Vec<Found> {
        let mut taken: Vec<Found> = self.written(piece).map(|range| (None, range)).collect();
        for (i, rule) in self.rules.iter().enumerate() {
            if !in_roles(&rule.entry.roles, text.role) {
                continue;
            }
            let found = rule.find_all(piece);
            if found.is_empty() {
                continue;
            }
            let free = |range: &Range<usize>| {
                let next = taken.partition_point(|(_, other)| other.end <= range.start);
                taken.get(next).is_none_or(|(_, other)| range.end <= other.start)
            };
            let free: Vec<Found> =
                found.into_iter().filter(free).map(|range| (Some(i), range)).collect();
            taken.extend(free);
            taken.sort_by_key(|(_, range)| range.start);
        }
        taken
    }

    /// Texts that look like placeholders. They get placeholders too, so that the answer has them as they
    /// were, and not the value of another one.
    fn written<'t>(&self, text: &'t str) -> impl Iterator<Item = Range<usize>> + use<'t, '_> {
        let kept = self.rules.iter().any(|rule| !rule.refuses() && rule.entry.reversible);
        let open = memchr::memchr_iter(b'[', text.as_bytes()).filter(move |_| kept);
        open.filter_map(move |start| {
            let length = placeholder_length(&text[start..])?;
            let label = text[start + 1..start + length].rsplit_once('_')?.0;
            let known = self.rules.iter().any(|rule| rule.label() == label);
            known.then_some(start..start + length)
        })
    }

    fn mask(
        &mut self,
        rule: Option<usize>,
        (text, literal): (&RequestText, &Literal<'_>),
        piece: &Piece<'_>,
        range: Range<usize>,
    ) {
        let value = &piece.text()[range.clone()];
        let placeholder = match rule.map(|rule| &self.rules[rule]) {
            Some(rule) if rule.refuses() => return,
            Some(rule) => self.numbering.placeholder(rule.label(), value, rule.entry.reversible),
            None => {
                let label = value[1..].rsplit_once('_').map_or("", |(label, _)| label);
                self.numbering.placeholder(label, value, true)
            }
        };
        // A number of a JSON text becomes a text.
        let with = match text.embedded && !piece.is_literal() {
            true => escaped(&String::from_utf8_lossy(&json::quoted(&placeholder))),
            false => placeholder.into_bytes(),
        };
        let place = piece.place(&range);
        let start = text.range.start;
        let range = start + literal.place(place.start)..start + literal.place(place.end);
        self.edits.push(Edit { range, with: with.into() });
    }
}

/// The length of what looks like a placeholder at the start of a text: `[EMAIL_1]`.
fn placeholder_length(text: &str) -> Option<usize> {
    const LONGEST: usize = 64;
    let inner = text.as_bytes().get(1..)?;
    let word = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
    let length = inner.iter().take(LONGEST).take_while(|byte| word(byte)).count();
    (inner.get(length) == Some(&b']')).then_some(length + 2)
}
