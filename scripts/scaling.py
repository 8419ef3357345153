#!/usr/bin/env python3
"""How many processes, Redis masters, partitions, ledgers and cores a rate of reservations needs.

    scaling.py --accepted 1000000
    scaling.py --accepted 10000 --refused 990000 --hot
    scaling.py --document docs/scaling.md       writes each plan of that page again

It computes from unit costs in microseconds of processor time, whose defaults are those of docs/performance.md, and simulates the
queue of one Redis master for the latency. docs/scaling.md explains the model, its assumptions, and what it does not know. The same
arguments always give the same result. Only the standard library of Python 3.10 or newer is used.
"""

import argparse
import heapq
import json
import math
import random
import re
from collections import deque

# The most requests of one call of lua/reserve.lua, and the most orders of one transaction of a worker.
BATCH_MAX = 128
STORE_BATCH_MAX = 500

# name, default, and what it is. `measured` figures are of docs/performance.md and docs/scaling.md; the others are assumptions.
COSTS = [
    ("service-accept-us", 14.2, "api process: an accepted call (measured)"),
    ("service-refuse-us", 11.9, "api process: a call that is sold out (measured)"),
    ("redis-batch-us", 15.0, "Redis: one call of reserve.lua, without its orders (measured)"),
    ("redis-order-us", 6.0, "Redis: an accepted order in a batch (measured)"),
    ("redis-refuse-us", 2.2, "Redis: a refused request in a batch (measured)"),
    ("redis-store-us", 5.0, "Redis: reading and settling an order (measured)"),
    ("redis-store-batch-us", 20.0, "Redis: one read and one call of settle.lua, without their orders (assumed)"),
    ("worker-store-us", 4.9, "worker: storing an order (measured)"),
    ("worker-transaction-us", 50.0, "worker: one transaction, without its orders (assumed)"),
    ("postgres-store-us", 10.7, "Postgres: storing an order (measured)"),
    ("postgres-transaction-us", 104.0, "Postgres: one transaction, without its orders (measured)"),
    ("postgres-wal-bytes", 628.0, "Postgres: write-ahead log of an order (measured)"),
    ("postgres-disk-bytes", 375.0, "Postgres: rows and indexes of an order (measured)"),
    ("redis-claim-bytes", 130.0, "Redis: memory of a remembered request id (measured)"),
    ("call-bytes", 280.0, "network: a call and its answer, without TLS (measured)"),
    ("redis-bytes", 320.0, "network: an order to Redis, and from Redis to the worker and back (measured)"),
    ("postgres-bytes", 130.0, "network: an order to Postgres (measured)"),
]
MACHINES = [
    ("process-cores", 8.0, "cores of an api process"),
    ("worker-cores", 4.0, "cores of a worker process"),
    ("postgres-cores", 32.0, "cores of a Postgres machine"),
    ("postgres-wal-mb-s", 400.0, "write-ahead log that a Postgres machine writes, MB/s"),
    ("partitions-per-master", 8.0, "partitions on each Redis master"),
    ("rtt-ms", 0.3, "round trip between two machines, ms"),
    ("commit-ms", 2.0, "commit of Postgres, with a synchronous standby, ms"),
    ("sale-seconds", 60.0, "duration of the rate"),
]
# How much of a resource is used. The rest is for a failed zone, a rewrite of the append-only file, a checkpoint, and the queue.
LIMITS = [
    ("service-limit", 0.6, "share of the cores of api processes"),
    ("redis-limit", 0.6, "share of the one core on which a Redis master runs commands"),
    ("worker-limit", 0.6, "share of the cores of workers"),
    ("postgres-limit", 0.5, "share of the cores of Postgres, and of its write-ahead log"),
    ("partition-limit", 0.6, "share of what a partition can store"),
]


def arguments(words):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--accepted", type=float, default=0.0, help="accepted reservations per second")
    parser.add_argument("--refused", type=float, default=0.0, help="further calls per second that are refused (sold out)")
    parser.add_argument("--hot", action="store_true", help="every call is for one product, so for one partition")
    parser.add_argument("--simulated", type=int, default=100_000, help="calls that are simulated for the latency")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--document", help="write each plan of this page again: what is between `<!-- scaling.py … -->` and `<!-- end -->`")
    for name, default, text in COSTS + MACHINES + LIMITS:
        parser.add_argument(f"--{name}", type=float, default=default, help=f"{text}; default {default:g}")
    given = parser.parse_args(words)
    for name, _, _ in COSTS + MACHINES + LIMITS:
        if getattr(given, name.replace("-", "_")) <= 0:
            parser.error(f"--{name} must be more than 0")
    if not given.document and (given.accepted < 0 or given.refused < 0 or given.accepted + given.refused <= 0):
        parser.error("--accepted and --refused must not be negative, and not both 0")
    return given


def at_least(least, value):
    return max(least, math.ceil(value - 1e-9))


def store_cycle_us(of):
    """What a transaction of a worker takes without its orders: round trips of gate, insert and commit, and the commit."""
    return (3 * of.rtt_ms + of.commit_ms) * 1000 + of.postgres_transaction_us


def store_batch(of, rate):
    """The orders of a transaction at this rate of a partition: those that arrive while the one before is stored."""
    share = rate * of.postgres_store_us / 1e6
    if share >= 1:
        return STORE_BATCH_MAX
    return min(STORE_BATCH_MAX, max(1.0, rate * store_cycle_us(of) / 1e6 / (1 - share)))


def partition_store_rate(of):
    """The most orders per second that a partition stores: its transactions are one after another (R2)."""
    return STORE_BATCH_MAX * 1e6 / (STORE_BATCH_MAX * of.postgres_store_us + store_cycle_us(of))


class Master:
    """One Redis master at a rate of calls that come from `processes`, for `partitions` of its own."""

    def __init__(self, of, accepted, refused, processes, partitions):
        self.of, self.accepted, self.refused = of, accepted, refused
        self.calls = accepted + refused
        self.pairs = processes * partitions
        self.partitions = partitions
        self.request_us = (accepted * of.redis_order_us + refused * of.redis_refuse_us) / self.calls
        self.batch, self.used = self.settle()

    def settle(self):
        """The mean batch and the use of its core. Each pair of a process and a partition has one call in progress, and its next
        batch is what arrives meanwhile. So batches grow with the wait, and the wait with the use: a fixed point."""
        of, batch, used = self.of, 1.0, 0.0
        arrivals = self.calls / self.pairs / 1e6
        stored = store_batch(of, self.accepted / self.partitions)
        store = self.accepted / 1e6 * (of.redis_store_us + of.redis_store_batch_us / stored)
        for _ in range(200):
            call_us = of.redis_batch_us + batch * self.request_us
            wait_us = min(used, 0.99) / (1 - min(used, 0.99)) * call_us / 2
            wanted = arrivals * (of.rtt_ms * 1000 + wait_us + call_us)
            batch += (min(BATCH_MAX, max(1.0, wanted)) - batch) / 2
            reserve = self.calls / 1e6 * (of.redis_batch_us / batch + self.request_us)
            used += (reserve + store - used) / 2
        return batch, used

    def simulate(self, calls):
        """Latencies in µs from the queue of a process to the answer of Redis. Commands are handled one at a time, in the order in
        which they arrive: calls of reserve.lua, and what the workers read and settle."""
        of, chance = self.of, random.Random(1)
        half_rtt = of.rtt_ms * 500
        queues = [deque() for _ in range(self.pairs)]
        in_progress = [False] * self.pairs
        jobs, latencies = [], []
        share = self.accepted / self.calls
        stored = store_batch(of, self.accepted / self.partitions)
        stores_us = math.inf if self.accepted == 0 else stored / self.accepted * 1e6 / 2
        free, number, made = 0.0, 0, 0
        heapq.heappush(jobs, (chance.expovariate(self.calls / 1e6), number, "call", None))
        if stores_us < math.inf:
            heapq.heappush(jobs, (chance.expovariate(1 / stores_us), 1, "store", None))
        number = 2

        def send(at, pair):
            nonlocal number
            queue = queues[pair]
            batch = [queue.popleft() for _ in range(min(BATCH_MAX, len(queue)))]
            in_progress[pair] = True
            number += 1
            heapq.heappush(jobs, (at + half_rtt, number, "batch", (pair, batch)))

        while jobs:
            at, _, kind, what = heapq.heappop(jobs)
            if kind == "call":
                pair = chance.randrange(self.pairs)
                queues[pair].append(at)
                made += 1
                if not in_progress[pair]:
                    send(at, pair)
                if made < calls:
                    number += 1
                    heapq.heappush(jobs, (at + chance.expovariate(self.calls / 1e6), number, "call", None))
            elif kind == "store":
                free = max(free, at) + (stored * of.redis_store_us + of.redis_store_batch_us) / 2
                if made < calls:
                    number += 1
                    heapq.heappush(jobs, (at + chance.expovariate(1 / stores_us), number, "store", None))
            elif kind == "batch":
                pair, batch = what
                accepted = sum(chance.random() < share for _ in batch)
                refused = len(batch) - accepted
                work = of.redis_batch_us + accepted * of.redis_order_us + refused * of.redis_refuse_us
                free = max(free, at) + work
                number += 1
                heapq.heappush(jobs, (free + half_rtt, number, "answer", (pair, batch)))
            else:
                pair, batch = what
                latencies.extend(at - since for since in batch)
                in_progress[pair] = False
                if queues[pair]:
                    send(at, pair)
        # The first tenth fills the queues.
        return sorted(latencies[len(latencies) // 10:])


def wait_quantile_us(cores, use, cost_us, quantile):
    """How long a call waits for one of the cores of a process (M/M/c, Erlang C)."""
    cores = max(1, int(cores))
    load = cores * use
    term, total = 1.0, 1.0
    for k in range(1, cores):
        term *= load / k
        total += term
    last = term * load / cores / (1 - use)
    waits = last / (total + last)
    if waits <= 1 - quantile:
        return 0.0
    return math.log(waits / (1 - quantile)) * cost_us / (cores * (1 - use))


def masters_needed(of, accepted, refused, processes):
    """The fewest masters of one ledger whose use is within the limit."""
    low, high = 1, 1
    partitions = int(of.partitions_per_master)

    def within(count):
        return Master(of, accepted / count, refused / count, processes, partitions).used <= of.redis_limit

    while not within(high):
        low, high = high + 1, high * 2
        if high > 4096:
            return None
    while low < high:
        middle = (low + high) // 2
        if within(middle):
            high = middle
        else:
            low = middle + 1
    return high


def shape(of, ledgers, stored):
    """The processes, masters and partitions of each of so many deployments, whose transactions have so many orders. Each of its
    processes serves all of its partitions."""
    accepted, refused = of.accepted / ledgers, of.refused / ledgers
    service_us = accepted * of.service_accept_us + refused * of.service_refuse_us
    processes = at_least(2, service_us / 1e6 / of.service_limit / of.process_cores)
    worker_us = accepted * (of.worker_store_us + of.worker_transaction_us / stored)
    workers = at_least(2, worker_us / 1e6 / of.worker_limit / of.worker_cores)
    masters, on_master = 1, 1
    if not of.hot:
        masters, on_master = masters_needed(of, accepted, refused, processes), int(of.partitions_per_master)
    if masters is None:
        return None
    master = Master(of, accepted / masters, refused / masters, processes, on_master)
    return processes, workers, masters, masters * on_master, master


def plan(of):
    calls = of.accepted + of.refused
    wal_mb_s = of.accepted * of.postgres_wal_bytes / 1e6
    ledgers, stored = 1, float(STORE_BATCH_MAX)
    # Smaller transactions cost Postgres more for each order, and more deployments have smaller transactions.
    for _ in range(50):
        postgres_us = of.postgres_store_us + of.postgres_transaction_us / stored
        postgres_cores = of.accepted * postgres_us / 1e6 / of.postgres_limit
        if not of.hot:
            wanted = max(postgres_cores / of.postgres_cores, wal_mb_s / of.postgres_wal_mb_s / of.postgres_limit)
            ledgers = max(ledgers, at_least(1, wanted))
        found = shape(of, ledgers, stored)
        if found is None:
            return {"problems": ["no number of masters up to 4096 is enough: fewer and larger api processes are needed"]}
        processes, workers, masters, partitions, master = found
        before, stored = stored, store_batch(of, of.accepted / ledgers / partitions)
        if abs(before - stored) < 0.01:
            break
    problems = []
    if master.used > of.redis_limit:
        problems.append(f"one master would be used to {master.used:.0%}, over the limit of {of.redis_limit:.0%}")
    store_rate = partition_store_rate(of)
    wanted_rate = of.accepted / ledgers / partitions
    if wanted_rate > store_rate * of.partition_limit:
        problems.append(
            f"a partition would store {wanted_rate:,.0f} orders per second, of at most {store_rate:,.0f}"
            + (": the others wait, up to backlog_max_entries" if wanted_rate > store_rate else "")
        )
    if partitions > 4096:
        problems.append("a deployment has at most 4096 partitions")
    service_us = of.accepted * of.service_accept_us + of.refused * of.service_refuse_us
    worker_us = of.accepted * (of.worker_store_us + of.worker_transaction_us / stored)
    result = {
        "calls": calls, "ledgers": ledgers, "api_processes": processes * ledgers, "worker_processes": workers * ledgers,
        "redis_masters": masters * ledgers, "partitions": partitions * ledgers,
        "service_cores": service_us / 1e6 / of.service_limit, "worker_cores": worker_us / 1e6 / of.worker_limit,
        "redis_cores": masters * ledgers, "postgres_cores": postgres_cores, "batch": master.batch, "redis_used": master.used,
        "store_batch": stored, "partition_store_rate": store_rate, "partition_used": wanted_rate / store_rate,
        "wal_mb_s": wal_mb_s, "disk_gb": of.accepted * of.sale_seconds * of.postgres_disk_bytes / 1e9,
        "redis_memory_gb": of.accepted / ledgers / masters * of.sale_seconds * of.redis_claim_bytes / 1e9,
        "network_gbit_s": (calls * of.call_bytes + of.accepted * (of.redis_bytes + of.postgres_bytes)) * 8 / 1e9,
        "problems": problems,
    }
    if master.used < 0.95:
        latency = master.simulate(of.simulated)
        use = service_us / 1e6 / (processes * ledgers * of.process_cores)
        for name, quantile in (("p50_ms", 0.5), ("p99_ms", 0.99)):
            at = latency[min(len(latency) - 1, int(len(latency) * quantile))]
            waited = wait_quantile_us(of.process_cores, use, of.service_accept_us, quantile)
            result[name] = (at + waited + of.service_accept_us) / 1000 + of.rtt_ms
        # The transaction that is in progress when the order arrives, and its own.
        result["stored_ms"] = 2 * (store_cycle_us(of) + stored * of.postgres_store_us) / 1000
    return result


def show(of, result):
    """The lines of a plan."""
    refused = f" and {of.refused:,.0f} refused" if of.refused else ""
    lines = [f"{of.accepted:,.0f} accepted{refused} calls per second{', all for one product' if of.hot else ''}"]
    if "ledgers" in result:
        rows = [
            ("deployments, each with its own Postgres", f"{result['ledgers']:,}"),
            ("api processes", f"{result['api_processes']:,} of {of.process_cores:g} cores"),
            ("worker processes", f"{result['worker_processes']:,} of {of.worker_cores:g} cores"),
            ("Redis masters", f"{result['redis_masters']:,}, one core each used to {result['redis_used']:.0%}"),
            ("partitions", f"{result['partitions']:,}, each at {result['partition_used']:.0%} of what it can store"),
            ("cores: api, worker, Redis, Postgres", ", ".join(
                f"{result[name]:,.0f}" for name in ("service_cores", "worker_cores", "redis_cores", "postgres_cores"))),
            ("requests of a script, orders of a transaction", f"{result['batch']:.1f}, {result['store_batch']:.0f}"),
            ("network in all", f"{result['network_gbit_s']:,.1f} Gbit/s"),
            ("write-ahead log of Postgres in all", f"{result['wal_mb_s']:,.0f} MB/s"),
            (f"in {of.sale_seconds:g} s: Postgres in all, request ids on a master",
             f"{result['disk_gb']:,.0f} GB, {result['redis_memory_gb']:,.1f} GB"),
        ]
        if "p99_ms" in result:
            rows.append(("answered: p50, p99 (ack = memory)", f"{result['p50_ms']:.1f} ms, {result['p99_ms']:.1f} ms"))
            rows.append(("stored after about", f"{result['stored_ms']:.0f} ms"))
        width = max(len(name) for name, _ in rows)
        lines += [f"  {name:<{width}}  {value}" for name, value in rows]
    return lines + [f"  over a limit: {problem}" for problem in result["problems"]]


def document(path):
    """Writes each plan of a page again."""
    with open(path, encoding="utf-8") as page:
        text = page.read()

    def written(found):
        of = arguments(found[1].split())
        lines = "".join(f"    {line}\n" for line in show(of, plan(of)))
        return f"<!-- scaling.py {found[1]} -->\n\n{lines}\n<!-- end -->"

    text = re.sub(r"<!-- scaling\.py (.*?) -->\n.*?<!-- end -->", written, text, flags=re.DOTALL)
    with open(path, "w", encoding="utf-8") as page:
        page.write(text)


def main():
    of = arguments(None)
    if of.document:
        document(of.document)
    elif of.json:
        print(json.dumps(plan(of), indent=2))
    else:
        print("\n".join(show(of, plan(of))))


if __name__ == "__main__":
    main()
