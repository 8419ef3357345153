// Counts the outcomes of reservations. A refusal, such as "sold out", is an expected outcome, not a failure.

import { Counter } from 'k6/metrics';

const counters = {
  accepted: new Counter('outcome_accepted'),
  refused: new Counter('outcome_refused'),
  shed: new Counter('outcome_shed'),
  unavailable: new Counter('outcome_unavailable'),
  other: new Counter('outcome_other'),
};

// Counts an outcome; returns whether a sale expects it.
export function count(outcome) {
  counters[outcome].add(1);
  return outcome === 'accepted' || outcome === 'refused';
}

// Every call of a sale is accepted or refused, none fails or is shed, and the 95th and 99th percentile of the
// duration are below P95_MS (1,000) and P99_MS (2,000). At most DROPPED_MAX (0) calls are not started because no virtual user
// is free.
export function thresholds(duration) {
  const limits = {
    checks: ['rate==1'],
    outcome_accepted: ['count>0'],
    dropped_iterations: [`count<=${__ENV.DROPPED_MAX || 0}`],
  };
  limits[duration] = [`p(95)<${__ENV.P95_MS || 1000}`, `p(99)<${__ENV.P99_MS || 2000}`];
  return limits;
}
