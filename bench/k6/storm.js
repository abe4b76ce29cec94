// A storm: many shoppers for few units, each sending twice with one key, through two
// gateways if there are two. Both sends of one shopper are told the same.
import exec from 'k6/execution';
import { purchase, setting, shopper, thresholds, unexpected } from './shop.js';

export const options = {
  scenarios: {
    storm: {
      executor: 'shared-iterations',
      vus: setting('VUS', 128),
      iterations: setting('SHOPPERS', 10000),
      maxDuration: '5m',
    },
  },
  thresholds,
};

export default function () {
  const who = shopper(exec.scenario.iterationInTest);
  const first = purchase(who, 0, ['SOLD_OUT']);
  const second = purchase(who, 1, ['SOLD_OUT']);
  if (first.order !== second.order && first.code !== 'unanswered' && second.code !== 'unanswered') {
    unexpected.add(1);
  }
}
