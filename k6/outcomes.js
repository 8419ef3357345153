// What a buyer may be told, counted: sold out is an answer, not a failure.

import { Counter } from 'k6/metrics';

const counters = {
  accepted: new Counter('outcome_accepted'),
  sold_out: new Counter('outcome_sold_out'),
  shed: new Counter('outcome_shed'),
  unavailable: new Counter('outcome_unavailable'),
  other: new Counter('outcome_other'),
};

// Counts an answer; returns whether it is one that a sale expects.
export function count(outcome) {
  counters[outcome].add(1);
  return outcome === 'accepted' || outcome === 'sold_out';
}

// Every answer of a sale is accepted or sold out; nothing fails, nothing is shed, and it is fast enough
// (P95_MS and P99_MS, one and two seconds unless told).
export function thresholds(duration) {
  const limits = {
    checks: ['rate==1'],
    outcome_accepted: ['count>0'],
    dropped_iterations: ['count==0'],
  };
  limits[duration] = [`p(95)<${__ENV.P95_MS || 1000}`, `p(99)<${__ENV.P99_MS || 2000}`];
  return limits;
}
