package system

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"flashgate/bench/load"
)

// Prepare opens sales and makes their shoppers: shopper i buys in sale i % len(sales).
func (s *System) Prepare(ctx context.Context, shoppers int, sales ...Sale) ([]load.Shopper, error) {
	units := 0
	for _, sale := range sales {
		units += sale.Total
	}
	s.Progress.Step("sale %s: %d units, %d shoppers with tokens", sales[0].ID, units, shoppers)
	err := sideBySide(ctx, len(sales), func(ctx context.Context, i int) error { return s.Open(ctx, sales[i]) })
	if err != nil {
		return nil, err
	}
	return s.NewShoppers(ctx, shoppers, sales...)
}

// Purchases is a load in which every shopper buys a unit.
func (s *System) Purchases(shoppers []load.Shopper, connections int, rate float64) *load.Load {
	return &load.Load{
		Addrs: s.Gateways, Connections: connections, Requests: len(shoppers), Due: load.AtRate(rate), Timeout: s.Timeout,
		Build: func(buf []byte, addr string, i int) []byte {
			return load.AppendPurchase(buf, addr, &shoppers[i])
		},
		Read: load.ReadPurchase,
	}
}

// NewShoppers makes n shoppers with tokens, and sees that every gateway takes them.
func (s *System) NewShoppers(ctx context.Context, n int, sales ...Sale) ([]load.Shopper, error) {
	shoppers := make([]load.Shopper, n)
	for i := range shoppers {
		shoppers[i] = load.Shopper{User: uuid.NewString(), Key: uuid.NewString(), Sale: sales[i%len(sales)].ID}
	}
	var err error
	if secret := s.Secret(EnvJWTSecret); secret != "" {
		err = Sign(shoppers, []byte(secret))
	} else {
		err = s.issue(ctx, shoppers)
	}
	if err != nil {
		return nil, err
	}
	for _, addr := range s.Gateways {
		var page struct{}
		if err := s.get(addr, "/v1/orders?sale_id="+sales[0].ID, shoppers[0].Token, &page); err != nil {
			return nil, fmt.Errorf("a gateway does not take the tokens of this run (is FLASHGATE_JWT_SECRET its secret?): %w", err)
		}
	}
	return shoppers, nil
}

// Sign makes the shoppers' tokens here, which is quicker than a process is started.
func Sign(shoppers []load.Shopper, secret []byte) error {
	now := time.Now()
	for i := range shoppers {
		claims := jwt.RegisteredClaims{
			Subject:   shoppers[i].User,
			IssuedAt:  jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(tokenTTL)),
		}
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(secret)
		if err != nil {
			return err
		}
		shoppers[i].Token = token
	}
	return nil
}

// issue has the program make the tokens, in one call.
func (s *System) issue(ctx context.Context, shoppers []load.Shopper) error {
	var users strings.Builder
	for i := range shoppers {
		users.WriteString(shoppers[i].User + "\n")
	}
	file := filepath.Join(s.Dir, "users.txt")
	if err := os.WriteFile(file, []byte(users.String()), 0o600); err != nil {
		return err
	}
	out, err := s.run(ctx, "token", "--users", file, "--ttl", tokenTTL.String())
	if err != nil {
		return err
	}
	tokens := make(map[string]string, len(shoppers))
	for line := range strings.Lines(string(out)) {
		user, token, _ := strings.Cut(strings.TrimSpace(line), " ")
		tokens[user] = token
	}
	for i := range shoppers {
		shoppers[i].Token = tokens[shoppers[i].User]
		if shoppers[i].Token == "" {
			return fmt.Errorf("flashgate token --users: no token for user %s in its %d lines", shoppers[i].User, len(tokens))
		}
	}
	return nil
}
