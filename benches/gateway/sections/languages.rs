//! The languages: Chat, Messages and Responses on a backend of their own, and what a translation adds.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    Bench, Entry, Protocol, ROUNDS, Report, role,
    streams::{self, KIB, Plan, Wave},
};
use crate::{
    figures::{
        stats,
        table::{Column, Row as Line, Table},
    },
    language::Language::{self, Chat, Messages, Responses},
    load::{self, Load, Round},
    rows::{self, DIRECT, PLAIN},
};

/// How many streams are open at the same time, and requests in flight.
const STREAMS: usize = 256;
const CLIENTS: usize = 32;

const CPU: &str = "µs of a core/request";
const ADDED: &str = "added token p50 µs";
const OF_CHAT: &str = "CPU of Chat's";
const ABOVE_CHAT: &str = "above Chat µs";
const KIB_ABOVE: &str = "KiB above Chat";

const COLUMNS: [Column; 7] = [
    Column::new("requests/s", 0),
    Column::new(CPU, 1),
    Column::new(OF_CHAT, 2),
    Column::difference(ADDED, 0),
    Column::new(ABOVE_CHAT, 0),
    Column::new(KIB, 1),
    Column::new(KIB_ABOVE, 1),
];

/// A client's language and a backend's.
type Pair = (Language, Language);

/// Those of the gateway, and of the backend alone. The first one is the yardstick.
const PAIRS: [Pair; 7] = [
    (Chat, Chat),
    (Messages, Messages),
    (Responses, Responses),
    (Messages, Chat),
    (Responses, Chat),
    (Chat, Messages),
    (Chat, Responses),
];
const ALONE: [Language; 3] = [Chat, Messages, Responses];

/// The name of a row.
fn named(server: &str, (client, backend): Pair) -> String {
    match client == backend {
        true => format!("{server}, {client:?}"),
        false => format!("{server}, {client:?} from {backend:?}"),
    }
}

/// A row that is being measured.
struct Spoken {
    entry: Entry<Wave>,
    pair: Pair,
    rounds: Vec<Round>,
}

impl Spoken {
    /// The median of what rounds have.
    fn median(&self, of: impl Fn(&Round) -> f64) -> Option<f64> {
        stats::median(self.rounds.iter().map(of))
    }

    fn is_process(&self) -> bool {
        self.entry.target.as_ref().is_ok_and(|target| target.process.is_some())
    }

    /// CPU time of a request in microseconds.
    fn cpu(&self) -> Option<f64> {
        self.median(Round::cpu_us).filter(|_| self.is_process())
    }

    /// Microseconds that a token is on its way.
    fn transit(&self) -> Option<f64> {
        stats::percentile(&streams::pooled(&self.entry)[1], 0.5)
    }

    fn kib(&self, plan: &Plan) -> Option<f64> {
        self.entry.results.first()?.kib(plan).filter(|_| self.is_process())
    }

    fn raw(&self) -> Value {
        json!({
            "requests": self.rounds.iter().map(Round::json).collect::<Value>(),
            "streams": streams::raw(&streams::pooled(&self.entry)),
        })
    }
}

/// Measures the section.
pub async fn languages(bench: &Bench, report: &mut Report) -> Result<(), String> {
    let asked = |name: &str| bench.settings.row(name);
    let pairs: Vec<Pair> = PAIRS.into_iter().filter(|pair| asked(&named(PLAIN, *pair))).collect();
    if !bench.settings.section("languages") || pairs.is_empty() {
        return Ok(());
    }
    let plan = Plan::new(STREAMS, bench.settings.seconds);
    let backend = bench.backend(plan.pace()).await?;
    let mut entries = Vec::new();
    let alone = rows::all().find(|row| row.name == DIRECT);
    for (row, language) in alone.into_iter().flat_map(|row| ALONE.map(|language| (row, language))) {
        let (pair, role) = ((language, language), role(&backend, &Protocol::Http1));
        let entry = Entry::start(bench, row, named(DIRECT, pair), role).await;
        entries.push(Spoken { entry, pair, rounds: Vec::new() });
    }
    for pair in PAIRS.into_iter().filter(|pair| *pair == PAIRS[0] || pairs.contains(pair)) {
        let Some((_, row)) = rows::LANGUAGES.iter().find(|(language, _)| *language == pair.1)
        else {
            continue;
        };
        let role = role(&backend, &Protocol::Http1);
        let entry = Entry::start(bench, row, named(PLAIN, pair), role).await;
        entries.push(Spoken { entry, pair, rounds: Vec::new() });
    }
    waves(&mut entries, &plan).await;
    rounds(&mut entries, bench.settings.seconds).await;
    report.table(table(&plan, bench, &entries), judge);
    Ok(())
}

/// Streams first: memory is that of a gateway which has served nothing before.
async fn waves(entries: &mut [Spoken], plan: &Plan) {
    for number in 0..plan.waves {
        for spoken in &mut *entries {
            let Ok(target) = &mut spoken.entry.target else { continue };
            let result = streams::wave(target, plan, spoken.pair.0, number == 0).await;
            spoken.entry.keep(result);
        }
    }
}

/// Puts all rows under load in turns. The first round is a warm-up.
async fn rounds(entries: &mut [Spoken], seconds: f64) {
    for number in 0..=ROUNDS {
        for spoken in &mut *entries {
            let Ok(target) = &mut spoken.entry.target else { continue };
            let language = spoken.pair.0;
            let load = Load {
                body: language.body(1024, false),
                language,
                clients: CLIENTS,
                time: Duration::from_secs_f64(seconds),
                least: 1,
                protocol: Protocol::Http1,
            };
            match load::round(target, &load).await {
                Ok(round) if number > 0 => spoken.rounds.push(round),
                Ok(_) => {}
                Err(why) => spoken.entry.keep(Err(why)),
            }
        }
    }
}

fn table(plan: &Plan, bench: &Bench, entries: &[Spoken]) -> Table {
    let chat = entries.iter().find(|spoken| spoken.entry.name == named(PLAIN, PAIRS[0]));
    // What a token takes from the backend alone, in the backend's language.
    let alone = |language| {
        let name = named(DIRECT, (language, language));
        entries.iter().find(|spoken| spoken.entry.name == name)?.transit()
    };
    let added = |spoken: &Spoken| Some(spoken.transit()? - alone(spoken.pair.1)?);
    let lines = entries.iter().map(|spoken| {
        let is_chat = spoken.entry.name == named(PLAIN, PAIRS[0]);
        let chat = chat.filter(|_| !is_chat && spoken.is_process());
        let above = |of: &dyn Fn(&Spoken) -> Option<f64>| Some(of(spoken)? - of(chat?)?);
        let outcome = spoken.entry.outcome(|target, _| {
            vec![
                spoken.median(Round::per_second),
                spoken.cpu(),
                chat.and_then(|chat| Some(spoken.cpu()? / chat.cpu()?)),
                added(spoken).filter(|_| target.process.is_some()),
                above(&added),
                spoken.kib(plan),
                above(&|spoken| spoken.kib(plan)),
            ]
        });
        Line { name: spoken.entry.name.clone(), outcome, raw: spoken.raw() }
    });
    let lines = lines.collect();
    let caption = format!(
        "Requests of 1 KB: {CLIENTS} at a time, {ROUNDS} rounds of {} s for each row, median. {}",
        bench.settings.seconds,
        plan.caption(plan.pace())
    );
    Table { name: "languages".to_owned(), caption, columns: COLUMNS.to_vec(), rows: lines }
}

fn judge(report: &mut Report, table: &Table) {
    for pair in PAIRS.into_iter().skip(1) {
        let row = named(PLAIN, pair);
        let value = |column| table.value(&row, column);
        match pair.0 == pair.1 {
            true => report.at_most(
                &format!("CPU of a request, {row}, of Chat's"),
                value(OF_CHAT),
                1.05,
                2,
            ),
            false => {
                report.at_most(
                    &format!("µs per token above Chat, {row}"),
                    value(ABOVE_CHAT),
                    25.0,
                    0,
                );
                report.at_most(
                    &format!("KiB a stream above Chat, {row}"),
                    value(KIB_ABOVE),
                    20.0,
                    1,
                );
            }
        }
    }
}
