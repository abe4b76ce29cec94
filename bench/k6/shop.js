// What the scripts share: shoppers with tokens of their own, purchases, and a counter for
// every code that the API answers with.
//
// Environment: GATEWAYS (URLs, comma-separated), SALE, FLASHGATE_JWT_SECRET; `go run
// ./bench k6` makes the sale, gives them, and audits afterwards.
import crypto from 'k6/crypto';
import encoding from 'k6/encoding';
import http from 'k6/http';
import { sleep } from 'k6';
import { Counter, Trend } from 'k6/metrics';

export const gateways = (__ENV.GATEWAYS || 'http://127.0.0.1:8080').split(',');
export const sale = __ENV.SALE;
const secret = __ENV.FLASHGATE_JWT_SECRET;
if (!sale || !secret) {
  throw new Error('SALE and FLASHGATE_JWT_SECRET are not set: run `go run ./bench k6`');
}

export function setting(name, otherwise) {
  return parseInt(__ENV[name] || otherwise, 10);
}

const tokenSeconds = 3600;
const timeout = '10s';

export const purchaseTime = new Trend('purchase_ms', true);
export const pageTime = new Trend('page_ms', true);
export const pages = new Counter('pages');
export const accepted = new Counter('purchases_accepted'); // orders, each once
export const replayed = new Counter('purchases_replayed');
export const unanswered = new Counter('purchases_unanswered');
export const unexpected = new Counter('unexpected_answers');
const refusals = {
  SOLD_OUT: new Counter('purchases_sold_out'),
  NOT_STARTED: new Counter('purchases_not_started'),
  LIMIT_REACHED: new Counter('purchases_limit_reached'),
  PAUSED: new Counter('purchases_paused'),
  ENDED: new Counter('purchases_ended'),
  RATE_LIMITED: new Counter('purchases_rate_limited'),
  UNAVAILABLE: new Counter('purchases_unavailable'),
  OUTCOME_UNKNOWN: new Counter('purchases_outcome_unknown'),
};

function sign(user) {
  const now = Math.floor(Date.now() / 1000);
  const head = encoding.b64encode('{"alg":"HS256","typ":"JWT"}', 'rawurl');
  const claims = encoding.b64encode(JSON.stringify({ sub: user, iat: now, exp: now + tokenSeconds }), 'rawurl');
  return `${head}.${claims}.${crypto.hmac('sha256', secret, `${head}.${claims}`, 'base64rawurl')}`;
}

// shopper number n of this sale; its key is for the one thing that it buys.
export function shopper(n) {
  const user = `k6-${n}-${sale}`.slice(0, 64);
  return { n, key: `key-${n}`, token: sign(user) };
}

// A shopper who is told 503 asks again with the same key, as the API says, so often.
const askAgain = 5;
const askAgainSeconds = 1;

// purchase buys a unit at the gateway of a turn, and returns the order's id, or '' with
// the code of a refusal. expected names the refusals that are no fault.
export function purchase(who, turn, expected) {
  let answer = ask(who, turn);
  for (let n = 0; n < askAgain && (answer.code === 'UNAVAILABLE' || answer.code === 'OUTCOME_UNKNOWN'); n++) {
    sleep(askAgainSeconds);
    answer = ask(who, turn);
  }
  if (answer.code !== '' && !expected.includes(answer.code)) {
    unexpected.add(1);
  }
  return answer;
}

function ask(who, turn) {
  const gateway = gateways[(who.n + turn) % gateways.length];
  const answer = http.post(`${gateway}/v1/sales/${sale}/purchases`, '{"quantity":1}', {
    headers: { Authorization: `Bearer ${who.token}`, 'Idempotency-Key': who.key, 'Content-Type': 'application/json' },
    tags: { name: 'purchase' },
    timeout,
  });
  if (answer.status === 0) {
    unanswered.add(1);
    return { order: '', code: 'unanswered', gateway };
  }
  purchaseTime.add(answer.timings.duration);
  const body = answer.json() || {};
  if (answer.status === 202) {
    (answer.headers['Idempotent-Replayed'] === 'true' ? replayed : accepted).add(1);
    return { order: body.order_id, code: '', gateway };
  }
  const code = body.code || `${answer.status}`;
  if (refusals[code]) {
    refusals[code].add(1);
  }
  return { order: '', code, gateway };
}

// page reads the sale's page.
export function page(turn) {
  const answer = http.get(`${gateways[turn % gateways.length]}/v1/sales/${sale}`, { tags: { name: 'page' }, timeout });
  pages.add(1);
  if (answer.status !== 200) {
    unexpected.add(1);
    return;
  }
  pageTime.add(answer.timings.duration);
}

// The thresholds of every script. The times are for a machine that runs driver, daemons
// and engines on two cores, with much to spare; the counts are promises.
export const thresholds = {
  unexpected_answers: ['count==0'],
  purchase_ms: ['p(99)<3000'],
};
