// Buys over REST, through Envoy, as clients of the legacy API do: they list the products, then place an order.
//
//   k6 run -e TARGET=http://127.0.0.1:8080 k6/rest.js

import http from 'k6/http';
import { check } from 'k6';
import exec from 'k6/execution';
import { count, thresholds } from './outcomes.js';

const TARGET = __ENV.TARGET || 'http://127.0.0.1:8080';
const PRODUCT = __ENV.PRODUCT || 'sneaker-42';
const RUN = __ENV.RUN || `${Date.now()}`;
const RATE = Number(__ENV.RATE || 200);
const SECONDS = Number(__ENV.SECONDS || 10);

// Sold out is 409. It is expected, so it does not count as a failed request.
http.setResponseCallback(http.expectedStatuses(200, 202, 409));

const limits = thresholds('http_req_duration');
limits.http_req_failed = ['rate==0'];

export const options = {
  scenarios: {
    buyers: {
      executor: 'constant-arrival-rate',
      rate: RATE,
      timeUnit: '1s',
      duration: `${SECONDS}s`,
      preAllocatedVUs: Math.ceil(RATE / 2),
      maxVUs: RATE * 2,
    },
  },
  thresholds: limits,
};

function outcome(response) {
  switch (response.status) {
    case 202: return 'accepted';
    case 409: return 'sold_out';
    // Also OVERLOADED with applied = maybe, which takes a unit: only with ack = replica or ledger.
    case 429: return 'shed';
    case 503: return 'unavailable';
    default: return 'other';
  }
}

export default function buy() {
  const listed = http.get(`${TARGET}/products`);
  check(listed, { 'an array of products': (r) => r.status === 200 && Array.isArray(r.json()) });
  const n = exec.scenario.iterationInTest;
  const body = JSON.stringify({ productId: PRODUCT, userId: `k6-${RUN}-${n}` });
  const headers = { 'content-type': 'application/json' };
  const response = http.post(`${TARGET}/orders`, body, { headers });
  check(response, { 'accepted or sold out': () => count(outcome(response)) });
}
