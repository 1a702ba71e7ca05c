//! How the simulated engine reports its load: `/metrics`, under the names of several engines,
//! and vLLM's header `endpoint-load-metrics`.

use std::fmt::{Display, Write};

use super::{
    behaviour::{Behaviour, Engine, Load},
    stats::{ReceivedRequest, Stats, get},
};

/// The load to report.
fn load(stats: &Stats, behaviour: &Behaviour) -> Load {
    if let Some(load) = behaviour.reports {
        return load;
    }
    let running = stats.running();
    // Without a cache of a known size, the share of slots in use.
    let (held, all) = match behaviour.prefix_cache {
        0 => (running, behaviour.max_running),
        blocks => (get(&stats.blocks), blocks),
    };
    let kv_cache_usage = if all == 0 { 0.0 } else { (held as f64 / all as f64).min(1.0) };
    Load { running, waiting: stats.waiting(), kv_cache_usage }
}

/// The text of `/metrics`.
pub fn text(stats: &Stats, behaviour: &Behaviour) -> String {
    let load = load(stats, behaviour);
    let model = behaviour.models.first().map_or("", String::as_str);
    match behaviour.engine {
        Engine::Vllm => vllm(stats, model, load),
        Engine::Sglang => sglang(stats, model, load),
        Engine::Tgi => {
            let mut out = Text::new(String::new());
            out.add("tgi_queue_size", "gauge", load.waiting);
            out.add("tgi_batch_current_size", "gauge", load.running);
            out.text
        }
        Engine::Llamacpp => {
            let mut out = Text::new(String::new());
            out.add("llamacpp:prompt_tokens_total", "counter", get(&stats.prompt_tokens));
            out.add("llamacpp:tokens_predicted_total", "counter", get(&stats.generated_tokens));
            out.add("llamacpp:requests_processing", "gauge", load.running);
            out.add("llamacpp:requests_deferred", "gauge", load.waiting);
            out.text
        }
    }
}

fn vllm(stats: &Stats, model: &str, load: Load) -> String {
    let (cached, queried) = stats.cached();
    let mut out = Text::new(format!("{{engine=\"0\",model_name=\"{model}\"}}"));
    out.add("vllm:num_requests_running", "gauge", Float(load.running));
    out.add("vllm:num_requests_waiting", "gauge", Float(load.waiting));
    for (reason, value) in [("capacity", load.waiting), ("deferred", 0)] {
        let labels = format!("engine=\"0\",model_name=\"{model}\",reason=\"{reason}\"");
        let name = "vllm:num_requests_waiting_by_reason";
        writeln!(out.text, "{name}{{{labels}}} {}", Float(value)).ok();
    }
    out.add("vllm:kv_cache_usage_perc", "gauge", format_args!("{:?}", load.kv_cache_usage));
    for (name, value) in [
        ("vllm:prefix_cache_queries_total", queried),
        ("vllm:prefix_cache_hits_total", cached),
        ("vllm:prompt_tokens_total", get(&stats.prompt_tokens)),
        ("vllm:prompt_tokens_cached_total", cached),
        ("vllm:generation_tokens_total", get(&stats.generated_tokens)),
    ] {
        out.add(name, "counter", Float(value));
    }
    let made = get(&stats.made) as f64 / 1e6;
    for name in ["vllm:prompt_tokens_created", "vllm:generation_tokens_created"] {
        out.add(name, "gauge", made);
    }
    out.text
}

fn sglang(stats: &Stats, model: &str, load: Load) -> String {
    let (cached, queried) = stats.cached();
    let rate = if queried == 0 { 0.0 } else { cached as f64 / queried as f64 };
    let mut out = Text::new(format!(
        "{{engine_type=\"unified\",model_name=\"{model}\",pp_rank=\"0\",tp_rank=\"0\"}}"
    ));
    out.add("sglang:num_running_reqs", "gauge", Float(load.running));
    out.add("sglang:num_queue_reqs", "gauge", Float(load.waiting));
    out.add("sglang:token_usage", "gauge", format_args!("{:?}", load.kv_cache_usage));
    out.add("sglang:cache_hit_rate", "gauge", format_args!("{rate:?}"));
    out.text
}

/// Metrics of one engine.
struct Text {
    text: String,
    labels: String,
}

impl Text {
    fn new(labels: String) -> Self {
        Self { text: String::new(), labels }
    }

    fn add(&mut self, name: &str, kind: &str, value: impl Display) {
        writeln!(self.text, "# TYPE {name} {kind}\n{name}{} {value}", self.labels).ok();
    }
}

/// Python writes whole numbers so.
struct Float(u64);

impl Display for Float {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}.0", self.0)
    }
}

/// The header line `endpoint-load-metrics` if the request asks for it, else nothing.
pub fn header(seen: &ReceivedRequest, stats: &Stats, behaviour: &Behaviour) -> String {
    let Some(format) = seen.header("endpoint-load-metrics-format") else {
        return String::new();
    };
    let Load { waiting, kv_cache_usage, .. } = load(stats, behaviour);
    let (kv, waiting) = (format!("{kv_cache_usage:?}"), Float(waiting));
    match format.to_ascii_uppercase().as_str() {
        "TEXT" => format!(
            "endpoint-load-metrics: TEXT named_metrics.kv_cache_usage_perc={kv}, \
             named_metrics.num_requests_waiting={waiting}\r\n"
        ),
        "JSON" => format!(
            "endpoint-load-metrics: JSON {{\"named_metrics\": {{\"kv_cache_usage_perc\": {kv}, \
             \"num_requests_waiting\": {waiting}}}}}\r\n"
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(engine: Engine) -> String {
        let load = Load { running: 3, waiting: 2, kv_cache_usage: 0.25 };
        let behaviour = Behaviour { engine, reports: Some(load), ..Behaviour::default() };
        text(&Stats::default(), &behaviour)
    }

    #[test]
    fn every_engine_has_its_names() {
        let labels = r#"{engine="0",model_name="sim-model"}"#;
        let vllm = told(Engine::Vllm);
        for line in [
            format!("vllm:num_requests_running{labels} 3.0\n"),
            format!("vllm:num_requests_waiting{labels} 2.0\n"),
            format!("vllm:kv_cache_usage_perc{labels} 0.25\n"),
        ] {
            assert!(vllm.contains(&line), "{vllm}");
        }
        assert!(told(Engine::Sglang).contains("sglang:num_queue_reqs{engine_type="));
        assert!(told(Engine::Tgi).contains("\ntgi_queue_size 2\n"));
        assert!(told(Engine::Llamacpp).contains("\nllamacpp:requests_deferred 2\n"));
    }

    #[test]
    fn the_capture_of_vllm_has_the_same_lines() {
        let capture = include_str!("../../tests/fixtures/vllm/metrics.txt");
        let capture = capture.replace("tiny-llama", "sim-model");
        let known = |line: &str| {
            let up_to_value = line.rsplit_once(' ').unwrap().0;
            capture.lines().any(|other| other.strip_prefix(up_to_value).is_some())
        };
        let ours = told(Engine::Vllm);
        assert!(ours.lines().filter(|line| !line.starts_with('#')).all(known), "{ours}");
    }

    #[test]
    fn the_header_is_given_in_the_format_that_is_asked_for() {
        let load = Load { running: 3, waiting: 2, kv_cache_usage: 0.5 };
        let behaviour = Behaviour { reports: Some(load), ..Behaviour::default() };
        let asked = |format: &str| {
            let headers = vec![("endpoint-load-metrics-format".to_owned(), format.to_owned())];
            header(
                &ReceivedRequest { headers, ..ReceivedRequest::default() },
                &Stats::default(),
                &behaviour,
            )
        };
        assert_eq!(
            asked("text"),
            "endpoint-load-metrics: TEXT named_metrics.kv_cache_usage_perc=0.5, \
             named_metrics.num_requests_waiting=2.0\r\n"
        );
        assert_eq!(
            asked("JSON"),
            "endpoint-load-metrics: JSON {\"named_metrics\": {\"kv_cache_usage_perc\": 0.5, \
             \"num_requests_waiting\": 2.0}}\r\n"
        );
        assert_eq!(asked("XML"), "");
        assert_eq!(header(&ReceivedRequest::default(), &Stats::default(), &behaviour), "");
    }
}
