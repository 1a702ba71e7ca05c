//! Checks that the metrics and labels of a PromQL query exist in a scrape.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::{
    label::Matchers,
    parser::{self, AggregateExpr, BinModifier, Expr, LabelModifier, VectorSelector, token},
};

pub type Labels = BTreeSet<String>;

/// Labels that Prometheus adds to each series.
const TARGET: [&str; 3] = ["job", "instance", "namespace"];

/// The families and series exposed by gateways.
#[derive(Default)]
pub struct Scrape {
    /// Families with their types.
    pub families: BTreeMap<String, String>,
    /// Labels of each series, by sample name.
    series: BTreeMap<String, Vec<BTreeMap<String, String>>>,
}

impl Scrape {
    /// Adds the text of `/metrics`.
    pub fn add(&mut self, text: &str) {
        for line in text.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                let (name, kind) = family.split_once(' ').unwrap();
                self.families.insert(name.to_owned(), kind.to_owned());
            }
            if line.starts_with('#') || line.is_empty() {
                continue;
            }
            let (name, rest) = line.split_once(['{', ' ']).unwrap();
            let labels = match line.as_bytes()[name.len()] {
                b'{' => labels(rest.rsplit_once('}').unwrap().0),
                _ => BTreeMap::new(),
            };
            self.series.entry(name.to_owned()).or_default().push(labels);
        }
    }

    /// The family of a sample.
    pub fn family<'a>(&self, sample: &'a str) -> &'a str {
        let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| sample.strip_suffix(end));
        match stem.filter(|stem| self.families.get(*stem).is_some_and(|kind| kind == "histogram")) {
            Some(stem) => stem,
            None => sample,
        }
    }
}

/// Parses `a="b",c="d"`. No value in the tests contains a quote.
fn labels(text: &str) -> BTreeMap<String, String> {
    let split = |pair: &str| pair.split_once("=\"").map(|(a, b)| (a.to_owned(), b.to_owned()));
    let pairs = text.strip_suffix('"').unwrap_or(text).split("\",");
    pairs.map(|pair| split(pair).unwrap_or_else(|| panic!("{text}"))).collect()
}

/// Checks queries against a scrape.
pub struct Reader<'a> {
    scrape: &'a Scrape,
    /// Families that the queries read.
    pub used: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    pub fn new(scrape: &'a Scrape) -> Self {
        Self { scrape, used: BTreeSet::new() }
    }

    /// The labels of the result of a query.
    ///
    /// # Errors
    /// If the query is not valid PromQL, or reads a metric or label that does not exist.
    pub fn labels(&mut self, query: &str) -> Result<Labels, String> {
        Ok(self.expr(&parser::parse(query)?)?.unwrap_or_default())
    }

    /// `None` for a number or a text.
    fn expr(&mut self, expr: &Expr) -> Result<Option<Labels>, String> {
        match expr {
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) => Ok(None),
            Expr::Paren(inner) => self.expr(&inner.expr),
            Expr::Unary(inner) => self.expr(&inner.expr),
            Expr::Subquery(inner) => self.expr(&inner.expr),
            Expr::VectorSelector(selector) => self.selector(selector).map(Some),
            Expr::MatrixSelector(selector) => self.selector(&selector.vs).map(Some),
            Expr::Aggregate(aggregate) => self.aggregate(aggregate).map(Some),
            Expr::Binary(binary) => {
                let (left, right) = (self.expr(&binary.lhs)?, self.expr(&binary.rhs)?);
                let or = binary.op.id() == token::T_LOR;
                match (left, right) {
                    (Some(l), Some(r)) => join(l, r, binary.modifier.as_ref(), or).map(Some),
                    (left, right) => Ok(left.or(right)),
                }
            }
            Expr::Call(call) => {
                let mut result = None;
                for argument in &call.args.args {
                    result = result.or(self.expr(argument)?);
                }
                match (call.func.name, result) {
                    ("histogram_quantile", Some(mut labels)) => match labels.remove("le") {
                        true => Ok(Some(labels)),
                        false => Err("a quantile of a vector without `le`".to_owned()),
                    },
                    // Its labels come from `=` matchers; no query here uses them.
                    ("absent", _) => Ok(Some(Labels::new())),
                    ("label_replace" | "label_join", _) => {
                        Err("not supported by this check".to_owned())
                    }
                    (_, result) => Ok(result),
                }
            }
            Expr::Extension(_) => Err("not PromQL".to_owned()),
        }
    }

    fn selector(&mut self, selector: &VectorSelector) -> Result<Labels, String> {
        let name = selector.name.as_deref().ok_or("a selector without a name")?;
        let mut all: Labels = TARGET.map(str::to_owned).into();
        if name == "up" {
            return Ok(all);
        }
        let series = self.scrape.series.get(name).ok_or(format!("there is no metric {name}"))?;
        self.used.insert(self.scrape.family(name).to_owned());
        all.extend(series.iter().flat_map(BTreeMap::keys).cloned());
        for matcher in &selector.matchers.matchers {
            if !all.contains(&matcher.name) {
                return Err(format!("{name} has no label {}", matcher.name));
            }
        }
        if !series.iter().any(|labels| matches(&selector.matchers, labels)) {
            return Err(format!("no series of {name} matches {:?}", selector.matchers));
        }
        Ok(all)
    }

    fn aggregate(&mut self, aggregate: &AggregateExpr) -> Result<Labels, String> {
        let inner = self.expr(&aggregate.expr)?.ok_or("an aggregate without a vector")?;
        if [token::T_TOPK, token::T_BOTTOMK].contains(&aggregate.op.id()) {
            return Ok(inner);
        }
        let Some(modifier) = &aggregate.modifier else {
            return Ok(Labels::new());
        };
        let named = named(modifier);
        has_all(&inner, &named)?;
        match modifier {
            LabelModifier::Include(_) => Ok(named),
            LabelModifier::Exclude(_) => Ok(&inner - &named),
        }
    }
}

fn named(modifier: &LabelModifier) -> Labels {
    modifier.labels().labels.iter().cloned().collect()
}

fn has_all(there: &Labels, wanted: &Labels) -> Result<(), String> {
    match wanted.difference(there).next() {
        Some(missing) => Err(format!("there is no label {missing}, only {there:?}")),
        None => Ok(()),
    }
}

/// Whether the matchers select a series of a gateway. The labels of the target may have any value.
fn matches(matchers: &Matchers, labels: &BTreeMap<String, String>) -> bool {
    let value = |name: &str| labels.get(name).map_or("", String::as_str);
    let own = |name: &str| !TARGET.contains(&name);
    matchers.matchers.iter().filter(|m| own(&m.name)).all(|m| m.is_match(value(&m.name)))
}

/// The labels of the result of a binary operation on two vectors.
fn join(l: Labels, r: Labels, modifier: Option<&BinModifier>, or: bool) -> Result<Labels, String> {
    if or {
        return Ok(&l | &r);
    }
    let on = modifier.and_then(|m| m.matching.as_ref());
    let (left, right) = match on {
        Some(LabelModifier::Include(_)) => {
            let on = named(on.unwrap());
            has_all(&l, &on)?;
            has_all(&r, &on)?;
            return Ok(l);
        }
        Some(ignoring) => (&l - &named(ignoring), &r - &named(ignoring)),
        None => (l.clone(), r.clone()),
    };
    // Otherwise Prometheus finds no pairs, and returns an empty result without an error.
    match left == right {
        true => Ok(l),
        false => Err(format!("{left:?} never equals {right:?}")),
    }
}
