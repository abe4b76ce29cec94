package gateway

import "bytes"

// route is one call of the API.
type route uint8

// The routes.
const (
	routeUnknown   route = iota
	routeSales           // GET  /v1/sales
	routeSale            // GET  /v1/sales/{id}
	routePurchases       // POST /v1/sales/{id}/purchases
	routeTicket          // POST /v1/sales/{id}/ticket
	routeOrders          // GET  /v1/orders
	routeOrder           // GET  /v1/orders/{id}
	routeCount
)

// routeNames are the values of the metrics' label route.
var routeNames = [routeCount]string{"unknown", "sales", "sale", "purchases", "ticket", "orders", "order"}

// allowed is the Allow header of each route.
var allowed = [routeCount]string{
	routeSales: "GET, HEAD", routeSale: "GET, HEAD", routePurchases: "POST", routeTicket: "POST",
	routeOrders: "GET, HEAD", routeOrder: "GET, HEAD",
}

var (
	pathSales     = []byte("/v1/sales")
	pathOrders    = []byte("/v1/orders")
	tailPurchases = []byte("/purchases")
	tailTicket    = []byte("/ticket")
)

// parseRoute finds the route of a path, and the id in it: a part of path.
func parseRoute(path []byte) (r route, id []byte) {
	if rest, ok := bytes.CutPrefix(path, pathSales); ok {
		switch id, tail, ok := cutID(rest); {
		case len(rest) == 0:
			return routeSales, nil
		case !ok:
			return routeUnknown, nil
		case len(tail) == 0:
			return routeSale, id
		case bytes.Equal(tail, tailPurchases):
			return routePurchases, id
		case bytes.Equal(tail, tailTicket):
			return routeTicket, id
		}
		return routeUnknown, nil
	}
	if rest, ok := bytes.CutPrefix(path, pathOrders); ok {
		switch id, tail, ok := cutID(rest); {
		case len(rest) == 0:
			return routeOrders, nil
		case ok && len(tail) == 0:
			return routeOrder, id
		}
	}
	return routeUnknown, nil
}

// cutID splits "/id/tail" into id and "/tail".
func cutID(rest []byte) (id, tail []byte, ok bool) {
	if len(rest) < 2 || rest[0] != '/' {
		return nil, nil, false
	}
	rest = rest[1:]
	if i := bytes.IndexByte(rest, '/'); i >= 0 {
		return rest[:i], rest[i:], i > 0
	}
	return rest, nil, true
}

// allows reports whether a route takes a method. HEAD is GET without the body.
func (r route) allows(method []byte) bool {
	if r == routePurchases || r == routeTicket {
		return string(method) == "POST"
	}
	return string(method) == "GET" || string(method) == "HEAD"
}
