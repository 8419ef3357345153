// The soak: a steady rate for MINUTES (60) on a product with many units.
//
//   k6 run -e PRODUCT=sticker-7 -e MINUTES=60 k6/soak.js

import { thresholds } from './outcomes.js';
import { buy } from './grpc.js';

const RATE = Number(__ENV.RATE || 200);
const MINUTES = Number(__ENV.MINUTES || 60);

export const options = {
  scenarios: {
    soak: {
      executor: 'constant-arrival-rate',
      rate: RATE,
      timeUnit: '1s',
      duration: `${Math.ceil(MINUTES * 60)}s`,
      preAllocatedVUs: Math.ceil(RATE / 2),
      maxVUs: RATE * 2,
    },
  },
  thresholds: thresholds('grpc_req_duration'),
};

export default buy;
