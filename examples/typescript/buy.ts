// Buys one unit: npm run --silent buy -- 127.0.0.1:50051 sneaker-42 ann order-1
import * as grpc from "@grpc/grpc-js";
import { loadSync, type MessageTypeDefinition } from "@grpc/proto-loader";
import { setTimeout as sleep } from "node:timers/promises";
import type { ProtoGrpcType } from "./generated/inventory.js";
import type { GetReservationResponse__Output as Found } from "./generated/yoink/v1/GetReservationResponse.js";
import type { ReserveUnitResponse__Output as Answer } from "./generated/yoink/v1/ReserveUnitResponse.js";

const UNCLEAR = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED];
const PROTO = process.env.YOINK_PROTO ?? "../../proto";
const FILES = ["yoink/v1/inventory.proto", "google/rpc/status.proto", "google/rpc/error_details.proto"];
const definition = loadSync(FILES, { includeDirs: [PROTO], enums: String, defaults: true });
const { yoink } = grpc.loadPackageDefinition(definition) as unknown as ProtoGrpcType;
const [address, productId, userId, requestId] = process.argv.slice(2);
if (!requestId) throw new Error("usage: buy <address> <product id> <user id> <request id>");
const client = new yoink.v1.InventoryService(address, grpc.credentials.createInsecure());

type Callback<T> = (error: grpc.ServiceError | null, answer?: T) => void;

/** A call with a deadline of two seconds, as a promise. */
function call<T>(start: (options: grpc.CallOptions, done: Callback<T>) => void): Promise<T> {
  return new Promise((resolve, reject) =>
    start({ deadline: Date.now() + 2000 }, (error, answer) => (error ? reject(error) : resolve(answer!))),
  );
}

/** The ErrorInfo of an error; undefined, if the error does not come from the service. */
function errorInfo({ metadata }: grpc.ServiceError): { reason: string; metadata: Record<string, string> } | undefined {
  const decode = (type: string, bytes: Buffer) =>
    (definition[type] as MessageTypeDefinition<object, any>).deserialize(bytes);
  const [status] = metadata.get("grpc-status-details-bin");
  const details: any[] = status ? decode("google.rpc.Status", status as Buffer).details : [];
  const info = details.find((detail) => detail.type_url.endsWith("/google.rpc.ErrorInfo"));
  return info && decode("google.rpc.ErrorInfo", info.value);
}

async function buy(): Promise<Answer> {
  for (let attempt = 0; attempt < 20; attempt++) {
    try {
      return await call((options, done) => client.reserveUnit({ productId, userId, requestId }, options, done));
    } catch (error) {
      const { code, details } = error as grpc.ServiceError;
      const info = errorInfo(error as grpc.ServiceError);
      if (info && info.metadata.applied !== "maybe" && !UNCLEAR.includes(code)) throw new Error(`refused: ${info.reason}`);
      // The unit may have been taken. The same request id never takes a second one, so the call can be repeated.
      console.log(`unclear: ${details}`);
      await sleep(500);
    }
  }
  throw new Error("no answer: ask again later with the same request id");
}

try {
  const answer = await buy();
  const reservationId = answer.reservation!.reservationId;
  console.log(`bought: ${reservationId} duplicate=${answer.duplicate}`);
  const found = await call<Found>((options, done) => client.getReservation({ reservationId }, options, done));
  console.log(`state: ${found.reservation!.state}`);
} catch (error) {
  console.error((error as Error).message);
  process.exitCode = 1;
} finally {
  client.close();
}
