//! Readings of an engine's load, from its metrics or from a header of its answers.

use crate::wire::samples;

/// A reading of an engine's load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Waiting requests.
    pub waiting: f64,
    /// Running requests; `None` if the engine did not report them.
    pub running: Option<f64>,
    /// Used share of the KV cache, 0 to 1.
    pub kv_cache: Option<f64>,
}

#[derive(Clone, Copy)]
enum Kind {
    Waiting,
    Running,
    KvCache,
}

/// The engines' names of their metrics.
const NAMES: [(&[u8], Kind); 10] = [
    (b"vllm:num_requests_waiting", Kind::Waiting),
    (b"vllm:num_requests_running", Kind::Running),
    (b"vllm:kv_cache_usage_perc", Kind::KvCache),
    (b"sglang:num_queue_reqs", Kind::Waiting),
    (b"sglang:num_running_reqs", Kind::Running),
    (b"sglang:token_usage", Kind::KvCache),
    (b"tgi_queue_size", Kind::Waiting),
    (b"tgi_batch_current_size", Kind::Running),
    (b"llamacpp:requests_deferred", Kind::Waiting),
    (b"llamacpp:requests_processing", Kind::Running),
];

/// Reads metrics in Prometheus' text format. Counts of several engines behind one address are
/// added up; the fullest of their caches counts. `None` if the text has no metric of requests.
pub fn metrics(text: &[u8]) -> Option<Reading> {
    let mut sums = Sums::default();
    samples::each(text, &NAMES, |kind, value| sums.add(kind, value));
    sums.reading()
}

/// Reads the value of an `endpoint-load-metrics` header, in the formats TEXT and JSON.
pub fn header(value: &str) -> Option<Reading> {
    let mut sums = Sums::default();
    let value = value.trim();
    let value = value.strip_prefix("TEXT").or(value.strip_prefix("JSON")).unwrap_or(value).trim();
    if value.starts_with('{') {
        let all: serde_json::Value = serde_json::from_str(value).ok()?;
        let named = all.get("named_metrics").and_then(|n| n.as_object());
        for (name, value) in all.as_object().into_iter().chain(named).flatten() {
            if let (Some(kind), Some(value)) = (kind(name), value.as_f64()) {
                sums.add(kind, value);
            }
        }
    } else {
        for (name, value) in value.split(',').filter_map(|part| part.split_once('=')) {
            if let (Some(kind), Ok(value)) = (kind(name.trim()), value.trim().parse()) {
                sums.add(kind, value);
            }
        }
    }
    sums.reading()
}

/// The kind of a metric of the header, whatever prefix its name has.
fn kind(name: &str) -> Option<Kind> {
    match name.rsplit(['.', ':']).next()? {
        "num_requests_waiting" => Some(Kind::Waiting),
        "num_requests_running" => Some(Kind::Running),
        "kv_cache_usage_perc" => Some(Kind::KvCache),
        _ => None,
    }
}

#[derive(Default)]
struct Sums {
    waiting: Option<f64>,
    running: Option<f64>,
    kv_cache: Option<f64>,
}

impl Sums {
    fn add(&mut self, kind: Kind, value: f64) {
        if !value.is_finite() || value < 0.0 {
            return;
        }
        match kind {
            Kind::Waiting => *self.waiting.get_or_insert(0.0) += value,
            Kind::Running => *self.running.get_or_insert(0.0) += value,
            Kind::KvCache => {
                let fullest = self.kv_cache.get_or_insert(0.0);
                *fullest = fullest.max(value);
            }
        }
    }

    fn reading(self) -> Option<Reading> {
        if self.waiting.is_none() && self.running.is_none() {
            return None;
        }
        let waiting = self.waiting.unwrap_or(0.0);
        Some(Reading { waiting, running: self.running, kv_cache: self.kv_cache })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(waiting: f64, running: f64, kv_cache: Option<f64>) -> Option<Reading> {
        Some(Reading { waiting, running: Some(running), kv_cache })
    }

    #[test]
    fn real_engines_are_understood() {
        let vllm = include_bytes!("../../tests/fixtures/vllm/metrics.txt");
        assert_eq!(metrics(vllm), reading(0.0, 0.0, Some(0.0)));
        let llama = include_bytes!("../../tests/fixtures/llamacpp/metrics.txt");
        assert_eq!(metrics(llama), reading(0.0, 0.0, None));
    }

    #[test]
    fn engines_behind_one_address_add_up() {
        let text = b"# TYPE vllm:num_requests_waiting gauge\n\
            vllm:num_requests_waiting{engine=\"0\",model_name=\"a}b\"} 3.0\n\
            vllm:num_requests_waiting{engine=\"1\",model_name=\"a}b\"} 1e1 1700000000\n\
            vllm:num_requests_waiting_by_reason{reason=\"capacity\"} 99\n\
            vllm:num_requests_running{engine=\"0\"} 2\n\
            vllm:kv_cache_usage_perc{engine=\"0\"} 0.2\n\
            vllm:kv_cache_usage_perc{engine=\"1\"} 0.9\n\
            vllm:num_requests_running{engine=\"1\"} NaN";
        assert_eq!(metrics(text), reading(13.0, 2.0, Some(0.9)));
    }

    #[test]
    fn other_engines_have_other_names() {
        let sglang = b"sglang:num_queue_reqs{tp=\"0\"} 4\nsglang:num_running_reqs 5\nsglang:token_usage 0.5\n";
        assert_eq!(metrics(sglang), reading(4.0, 5.0, Some(0.5)));
        assert_eq!(
            metrics(b"tgi_queue_size 1\ntgi_batch_current_size 7\n"),
            reading(1.0, 7.0, None)
        );
        assert_eq!(metrics(b"process_cpu_seconds_total 7\n"), None);
        assert_eq!(metrics(b"vllm:num_requests_waiting{engine=\"0\n"), None);
    }

    #[test]
    fn headers_come_in_two_formats() {
        let expected = Some(Reading { waiting: 2.0, running: None, kv_cache: Some(0.3) });
        let text =
            "TEXT named_metrics.kv_cache_usage_perc=0.3, named_metrics.num_requests_waiting=2.0";
        assert_eq!(header(text), expected);
        assert_eq!(header("kv_cache_usage_perc=0.3,num_requests_waiting=2"), expected);
        let json =
            r#"JSON {"named_metrics": {"kv_cache_usage_perc": 0.3, "num_requests_waiting": 2}}"#;
        assert_eq!(header(json), expected);
        assert_eq!(header("nonsense"), None);
        assert_eq!(header("{"), None);
    }
}
