//! The text of a prompt: `${NAME}`, `${NAME:-default}`, and `$$` for a dollar sign.

/// A piece of a prompt's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The same in every request.
    Text(String),
    /// Known when a request arrives.
    Variable {
        variable: RequestVariable,
        /// What stands there if the variable is empty.
        default: String,
    },
}

/// A variable that depends on the request, or on its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestVariable {
    Date,
    Time,
    DateTime,
    /// The model, as the client names it.
    Model,
    /// The user that the key belongs to.
    UserId,
}

impl RequestVariable {
    /// Whether its value changes while the gateway runs, whoever asks.
    pub fn is_time(self) -> bool {
        matches!(self, Self::Date | Self::Time | Self::DateTime)
    }

    /// Whether its value is another one with every second.
    pub fn is_clock(self) -> bool {
        matches!(self, Self::Time | Self::DateTime)
    }
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// This text; `None` if it is not set.
    Known(Option<String>),
    /// What only a request says.
    OfRequest(RequestVariable),
}

/// Reads a text. `find` says what a name stands for; `None` if it has reported a problem. Whatever is
/// not a variable stays as it is.
pub fn parse(text: &str, mut find: impl FnMut(&str) -> Option<Value>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut fixed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        fixed.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            fixed.push('$');
            rest = after;
            continue;
        }
        let Some((name, default, after)) = variable(rest) else {
            fixed.push('$');
            continue;
        };
        rest = after;
        match find(name) {
            Some(Value::Known(value)) => {
                let value = value.filter(|value| !value.is_empty());
                fixed.push_str(value.as_deref().unwrap_or(default));
            }
            Some(Value::OfRequest(variable)) => {
                if !fixed.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut fixed)));
                }
                pieces.push(Piece::Variable { variable, default: default.to_owned() });
            }
            None => {}
        }
    }
    fixed.push_str(rest);
    if !fixed.is_empty() {
        pieces.push(Piece::Text(fixed));
    }
    pieces
}

/// The name and the default of a variable after its dollar sign, and what follows it.
fn variable(rest: &str) -> Option<(&str, &str, &str)> {
    let (inner, after) = rest.strip_prefix('{')?.split_once('}')?;
    let (name, default) = inner.split_once(":-").unwrap_or((inner, ""));
    is_name(name).then_some((name, default, after))
}

/// Whether a text can be the name of a variable.
pub fn is_name(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !text.is_empty() && text.chars().all(legal) && !text.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(name: &str) -> Option<Value> {
        match name {
            "SET" => Some(Value::Known(Some("value".to_owned()))),
            "TRICK" => Some(Value::Known(Some("${SET}$$".to_owned()))),
            "EMPTY" => Some(Value::Known(Some(String::new()))),
            "UNSET" => Some(Value::Known(None)),
            "_DATE" => Some(Value::OfRequest(RequestVariable::Date)),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced_and_nothing_else() {
        for (text, expected) in [
            ("a ${SET} b", "a value b"),
            ("${SET:-x}${EMPTY:-y}${UNSET:-z w}", "valueyz w"),
            ("[${EMPTY}${UNSET}${UNSET:-}]", "[]"),
            ("${UNSET:-a:-b}", "a:-b"),
            ("costs $5 or $$5, ${ and ${}", "costs $5 or $5, ${ and ${}"),
            ("$${SET} $$$${SET} $$$", "${SET} $${SET} $$"),
            ("${1ST} ${not a name} ${A-B}", "${1ST} ${not a name} ${A-B}"),
            ("$SET {SET} $", "$SET {SET} $"),
            ("${TRICK}", "${SET}$$"),
            ("ä${SET}ö", "ävalueö"),
        ] {
            assert_eq!(parse(text, find), [Piece::Text(expected.to_owned())], "{text}");
        }
        assert_eq!(parse("", find), []);
        assert_eq!(parse("${UNSET}", find), []);
    }

    #[test]
    fn what_only_a_request_says_stays_open() {
        let date = |default: &str| Piece::Variable {
            variable: RequestVariable::Date,
            default: default.to_owned(),
        };
        let text = |text: &str| Piece::Text(text.to_owned());
        assert_eq!(
            parse("It is ${_DATE}, ${SET}.", find),
            [text("It is "), date(""), text(", value.")]
        );
        assert_eq!(parse("${_DATE:-today}${_DATE}", find), [date("today"), date("")]);
    }

    #[test]
    fn every_name_is_asked_for() {
        let mut names = Vec::new();
        parse("${A} ${B:-x} $${C} ${D", |name| {
            names.push(name.to_owned());
            None
        });
        assert_eq!(names, ["A", "B"]);
    }
}
