package stock

import "strconv"

// key names one of the keys of a sale, as the headers of the scripts do.
type key string

const (
	keyStock   key = "stock"
	keyBuyers  key = "buyers"
	keyBatches key = "batches"
	keyPending key = "pending"
	keyMeta    key = "meta"
)

// allKeys are the keys of a sale, every one.
var allKeys = []key{keyStock, keyBuyers, keyBatches, keyPending, keyMeta}

// wholeSale is the bucket of a sale that is not split into buckets.
const wholeSale = 0

// keysOf builds keys of a sale (or of one bucket of it), all in one hash slot. It is
// the only place that knows how a key is spelled.
func keysOf(saleID string, bucket int, names ...key) []string {
	tag := saleID
	if bucket != wholeSale {
		tag += "." + strconv.Itoa(bucket)
	}
	prefix := "fg:{" + tag + "}:"
	keys := make([]string, len(names))
	for i, name := range names {
		keys[i] = prefix + string(name)
	}
	return keys
}
