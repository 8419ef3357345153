// The spike: the rate of buyers grows to RATE per second (1,000), whether or not earlier calls have ended.
//
//   k6 run -e TARGET=127.0.0.1:50051 -e PRODUCT=sneaker-42 k6/spike.js

import { thresholds } from './outcomes.js';
import { buy } from './grpc.js';

const RATE = Number(__ENV.RATE || 1000);
const SECONDS = Number(__ENV.SECONDS || 10);

export const options = {
  scenarios: {
    spike: {
      executor: 'ramping-arrival-rate',
      startRate: Math.ceil(RATE / 10),
      timeUnit: '1s',
      preAllocatedVUs: Math.ceil(RATE / 4),
      maxVUs: RATE * 2,
      stages: [
        { target: RATE, duration: `${SECONDS}s` },
        { target: RATE, duration: `${SECONDS}s` },
        { target: 0, duration: '2s' },
      ],
    },
  },
  thresholds: thresholds('grpc_req_duration'),
};

export default buy;
