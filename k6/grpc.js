// Buys over gRPC, with one connection for each virtual user, which its first iteration opens.

import grpc from 'k6/net/grpc';
import { check } from 'k6';
import exec from 'k6/execution';
import { count } from './outcomes.js';

const TARGET = __ENV.TARGET || '127.0.0.1:50051';
const PRODUCT = __ENV.PRODUCT || 'sneaker-42';
const RUN = __ENV.RUN || `${Date.now()}`;

const client = new grpc.Client();
client.load(['../proto'], 'yoink/v1/inventory.proto');
let connected = false;

function outcome(response) {
  switch (response.status) {
    case grpc.StatusOK: return 'accepted';
    case grpc.StatusFailedPrecondition: return 'refused';
    // Also OVERLOADED with applied = maybe, which takes a unit: only with ack = replica or ledger.
    case grpc.StatusResourceExhausted: return 'shed';
    case grpc.StatusUnavailable: return 'unavailable';
    default: return 'other';
  }
}

export function buy() {
  if (!connected) {
    client.connect(TARGET, { plaintext: true });
    connected = true;
  }
  const n = exec.scenario.iterationInTest;
  const request = { product_id: PRODUCT, user_id: `k6-${RUN}-${n}`, request_id: `${RUN}-${n}` };
  const response = client.invoke('yoink.v1.InventoryService/ReserveUnit', request);
  check(response, { 'accepted or refused': () => count(outcome(response)) });
}
