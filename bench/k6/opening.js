// The opening second of a sale: few while it is awaited, all at once when it opens, then
// fewer and fewer. Nine of ten look at the page, one buys; who is too early is told so.
import exec from 'k6/execution';
import { sleep } from 'k6';
import { page, purchase, setting, shopper, thresholds } from './shop.js';

const peak = setting('RATE', 1000); // arrivals in the opening second
const vus = setting('VUS', 256);
const quiet = Math.max(1, Math.floor(peak / 20));
const leadSeconds = 4;
const opensAt = setting('STARTS_AT_MS', 0);
const buyersOf = 10; // one in so many arrivals

export const options = {
  scenarios: {
    wave: {
      executor: 'ramping-arrival-rate',
      startRate: quiet,
      timeUnit: '1s',
      preAllocatedVUs: vus,
      maxVUs: vus,
      stages: [
        { duration: `${leadSeconds}s`, target: quiet },
        { duration: '0s', target: peak },
        { duration: '1s', target: peak },
        { duration: '2s', target: Math.floor(peak / 2) },
        { duration: '2s', target: Math.floor(peak / 4) },
        { duration: '3s', target: quiet },
      ],
    },
  },
  thresholds: { ...thresholds, page_ms: ['p(99)<3000'] },
};

export function setup() {
  const wait = opensAt / 1000 - leadSeconds - Date.now() / 1000;
  if (wait > 0) {
    sleep(wait);
  }
}

export default function () {
  const n = exec.scenario.iterationInTest;
  if (n % buyersOf !== 0) {
    page(n);
    return;
  }
  const before = Date.now() < opensAt + 1000; // the clocks of gateway and Redis have their say
  purchase(shopper(n), 0, before ? ['NOT_STARTED', 'SOLD_OUT'] : ['SOLD_OUT']);
}
