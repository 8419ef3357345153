//! A report as JSON.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    credential::Credential,
    outcome::Outcomes,
    plan::{Call, Pace, Plan, Users},
    report::{PERCENTILES, Report, Second},
};

impl Report {
    /// The report as JSON. Latencies are in microseconds, other times in seconds.
    pub fn to_json(&self) -> Value {
        let mut latency: Map<String, Value> = PERCENTILES
            .into_iter()
            .map(|(name, quantile)| (name.to_owned(), micros(self.latency_at(quantile))))
            .collect();
        latency.insert("max".to_owned(), micros(self.latency_max()));
        latency.insert("mean".to_owned(), micros(self.latency_mean()));
        let outcomes = self.outcomes.iter().map(|(outcome, count)| {
            json!({ "kind": outcome.kind.as_str(), "name": &*outcome.name, "count": count })
        });
        let connections = self.connections;
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "commit": env!("YOINK_COMMIT"),
            "plan": plan(&self.plan),
            "interrupted": self.interrupted,
            "elapsed_s": self.elapsed.as_secs_f64(),
            "calls": self.calls(),
            "answered": self.outcomes.answered(),
            "errors": self.errors(),
            "error_rate": self.error_rate(),
            "outcomes": outcomes.collect::<Vec<_>>(),
            "not_started": self.not_started,
            "warm_up_calls": self.warm_up_calls,
            "rate": self.rate(),
            "peak_rate": self.peak_rate(),
            "latency_us": latency,
            "connections": {
                "made": connections.made,
                "failed": connections.failed,
                "lost": connections.lost,
                "closed": connections.closed,
            },
            "connection_errors": self.connection_errors(),
            "cpu_s": self.cpu.as_secs_f64(),
            "cpu_us_per_call": self.cpu_us_per_call(),
            "seconds": self.seconds.iter().map(second).collect::<Vec<_>>(),
        })
    }
}

fn micros(latency: Duration) -> Value {
    json!(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX))
}

fn second(second: &Second) -> Value {
    json!({
        "second": second.number,
        "answered": second.answered,
        "p50_us": micros(second.p50),
        "p99_us": micros(second.p99),
        "backlog": second.backlog,
        "outcomes": by_name(&second.outcomes),
    })
}

fn by_name(outcomes: &Outcomes) -> Map<String, Value> {
    outcomes.iter().map(|(outcome, count)| (outcome.name.to_string(), json!(count))).collect()
}

fn plan(plan: &Plan) -> Value {
    let call = match plan.call {
        Call::ReserveUnit => "reserve-unit",
        Call::HealthCheck => "health-check",
    };
    let rate = match plan.pace {
        Pace::Closed => None,
        Pace::Open { rate } => Some(rate),
    };
    let (users, user_choice) = match plan.users {
        Users::New => (None, None),
        Users::Of { count, choice } => (Some(count), Some(choice.to_string())),
    };
    json!({
        "target": plan.target,
        "credential_header": plan.credential.as_ref().map(Credential::header),
        "call": call,
        "loop": if rate.is_some() { "open" } else { "closed" },
        "rate": rate,
        "connections": plan.connections,
        "streams": plan.streams,
        "threads": plan.threads.min(plan.connections),
        "calls": plan.calls,
        "duration_s": plan.duration.map(|duration| duration.as_secs_f64()),
        "warm_up_s": plan.warm_up.as_secs_f64(),
        "timeout_s": plan.timeout.as_secs_f64(),
        "products": plan.products.len(),
        "product_choice": plan.product_choice.to_string(),
        "users": users,
        "user_choice": user_choice,
        "request_ids": plan.request_ids,
        "ack": plan.ack.as_str_name(),
    })
}

#[cfg(test)]
mod tests {
    use crate::load::report::tests::example;

    #[test]
    fn json_has_the_counts_of_the_report() {
        let json = example().to_json();
        assert_eq!((&json["calls"], &json["errors"]), (&10.into(), &2.into()));
        assert_eq!(json["outcomes"][0]["name"], "accepted");
        assert_eq!(json["outcomes"][3]["kind"], "unanswered");
        assert_eq!(json["seconds"][0]["outcomes"]["SOLD_OUT"], 6);
        assert_eq!(json["seconds"][1]["backlog"], serde_json::Value::Null);
        assert_eq!(json["plan"]["loop"], "closed");
        assert_eq!(json["connections"]["made"], 9);
        assert!(json["latency_us"]["p99.9"].as_u64().unwrap() >= 9_000);
    }
}
