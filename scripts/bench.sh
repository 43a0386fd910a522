#!/usr/bin/env bash
# Measures Sluice beside its peers and the machine's limits; the tables and plots are in docs/benchmarks/results.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'USAGE'
usage: scripts/bench.sh [--quick] [--only PART]... [--seconds S] [--runs N] [--out DIR]

Installs what is missing (scripts/setup), builds the release (scripts/build) and measures, about 80 minutes. Needs two
cores and 4 GiB of memory that nothing else uses meanwhile. Ctrl-C ends it; parts that were complete are kept.

  parts       components: the Google Benchmark programs
  bdev        block devices in process: null, malloc
  files       files on the disk and in memory: aio and uring, beside fio
  vhost       over a vhost-user socket, beside qemu-storage-daemon
  sizes       requests of 512 B to 1 MiB on malloc
  density     4,096 devices on one core: one busy, 64 busy, all idle; creation and deletion
  loads       100 to 1,000,000 requests per second in each mode: processor time and latencies
  restless    modes that change and threads that move, every 10 ms under verified writes
  neighbours  what front ends that misbehave do to the latencies of others
  hostile     200 front ends that attack the daemon in every way we know, beside 200 honest ones
  lvol        logical volumes beside their base bdev, first writes to clones, snapshots, loading
  guest       a Linux guest (User-Mode Linux), beside qemu-storage-daemon

  --only PART   measure this part; what is known of the others stays. May be repeated
  --quick       two short runs of each row, about 11 minutes, to build/bench/results: does it work?
  --smoke       one run of a few rows of each part, also there: what the test command does
  --seconds S   of each run (2)
  --runs N      of each row (5)
  --out DIR     where results.json, results.md and the plots go (docs/benchmarks/results)
USAGE
}

for argument in "$@"; do
  case $argument in
    --help | -h)
      usage
      exit 0
      ;;
  esac
done

scripts/setup
scripts/build release
exec test/bench/run.py "$@"
