package system

import (
	"context"
	"flashgate/bench/load"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// Prepare opens a sale and makes its shoppers.
func (s *System) Prepare(ctx context.Context, saleID string, shoppers, total int) ([]load.Shopper, error) {
	s.Progress.Step("sale %s: %d units, %d shoppers with tokens", saleID, total, shoppers)
	if err := s.openSale(ctx, saleID, total); err != nil {
		return nil, err
	}
	return s.newShoppers(ctx, shoppers, saleID)
}

// Purchases is a load in which every shopper buys a unit.
func (s *System) Purchases(saleID string, shoppers []load.Shopper, connections int, rate float64) *load.Load {
	return &load.Load{
		Addrs: s.Gateways, Connections: connections, Requests: len(shoppers), Rate: rate, Timeout: s.Timeout,
		Build: func(buf []byte, addr string, i int) []byte {
			return load.AppendPurchase(buf, addr, saleID, &shoppers[i])
		},
		Read: load.ReadPurchase,
	}
}

// newShoppers makes n shoppers with tokens, and sees that every gateway takes them.
func (s *System) newShoppers(ctx context.Context, n int, saleID string) ([]load.Shopper, error) {
	shoppers := make([]load.Shopper, n)
	for i := range shoppers {
		shoppers[i] = load.Shopper{User: uuid.NewString(), Key: uuid.NewString()}
	}
	var err error
	if secret := os.Getenv("FLASHGATE_JWT_SECRET"); secret != "" {
		err = Sign(shoppers, []byte(secret))
	} else {
		err = s.issue(ctx, shoppers)
	}
	if err != nil {
		return nil, err
	}
	for _, addr := range s.Gateways {
		var page struct{}
		if err := s.get(addr, "/v1/orders?sale_id="+saleID, shoppers[0].Token, &page); err != nil {
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
