// A soak: purchases at a steady rate for a long time. One buyer in ten then looks at the
// order until it is in the ledger, as a shopper's page does.
import exec from 'k6/execution';
import http from 'k6/http';
import { sleep } from 'k6';
import { Trend } from 'k6/metrics';
import { purchase, sale, setting, shopper, thresholds, unexpected } from './shop.js';

const persisted = new Trend('persisted_ms', true);
const lookersOf = 10; // one in so many
const looks = 100;
const pauseSeconds = 0.1;

export const options = {
  scenarios: {
    soak: {
      executor: 'constant-arrival-rate',
      rate: setting('RATE', 200),
      timeUnit: '1s',
      duration: __ENV.DURATION || '1m',
      preAllocatedVUs: setting('VUS', 256),
      maxVUs: setting('VUS', 256),
    },
  },
  thresholds: { ...thresholds, persisted_ms: ['p(99)<10000'] },
};

export default function () {
  const n = exec.scenario.iterationInTest;
  const who = shopper(n);
  const bought = purchase(who, 0, ['SOLD_OUT']);
  if (!bought.order || n % lookersOf !== 0) {
    return;
  }
  const began = Date.now();
  for (let i = 0; i < looks; i++) {
    const answer = http.get(`${bought.gateway}/v1/orders/${bought.order}?sale_id=${sale}`, {
      headers: { Authorization: `Bearer ${who.token}` },
      tags: { name: 'order' },
    });
    const status = answer.status === 200 ? answer.json().status : '';
    if (status === 'PENDING_PAYMENT') {
      persisted.add(Date.now() - began);
      return;
    }
    if (status !== 'PROCESSING' && answer.status !== 503) {
      break;
    }
    sleep(pauseSeconds);
  }
  unexpected.add(1);
}
