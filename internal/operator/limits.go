package operator

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"flashgate/internal/limits"
	"flashgate/internal/sale"
)

// AccessChange is a block or an allowance as an operator writes it.
type AccessChange struct {
	User    string      `json:"user,omitempty"`    // a token's sub, or
	Address string      `json:"address,omitempty"` // an address or a network
	Access  sale.Access `json:"access"`            // BLOCK, ALLOW or LIFT
	Until   time.Time   `json:"until,omitzero"`    // then it ends by itself; zero = never
	Decision
}

// AccessView is a block or an allowance that is in force.
type AccessView struct {
	User      string      `json:"user,omitempty"`
	Address   string      `json:"address,omitempty"`
	Access    sale.Access `json:"access"`
	Until     time.Time   `json:"until,omitzero"`
	CreatedAt time.Time   `json:"created_at"`
	Decision
}

type accessList struct {
	Access []AccessView `json:"access"`
}

// accessRules reads the blocks and allowances that are in force.
func (a *Admin) accessRules(ctx context.Context) ([]sale.AccessRule, error) {
	var book sale.AccessBook
	_, err := book.Read(ctx, a.Ledger, time.Now())
	return book.Rules(), err
}

// Access lists the blocks and allowances that operators made and that are in force,
// oldest first. Those of the limits file are in Limits.
func (a *Admin) Access(ctx context.Context) ([]AccessView, error) {
	rules, err := a.accessRules(ctx)
	if err != nil {
		return nil, err
	}
	views := make([]AccessView, len(rules))
	for i := range rules {
		r := &rules[i]
		views[i] = AccessView{Access: r.Access, Until: r.Until, CreatedAt: r.CreatedAt, Decision: Decision{By: r.By, Reason: r.Reason}}
		if r.Kind == sale.AccessUser {
			views[i].User = r.Value
		} else {
			views[i].Address = r.Value
		}
	}
	return views, nil
}

// SetAccess blocks or allows a user or an address, or lifts what was said of it; every
// gateway follows within a second, and after a restart too. Errors: INVALID_REQUEST, and
// CONFLICT when there are as many rules as a gateway holds.
func (a *Admin) SetAccess(ctx context.Context, change AccessChange) (Change, error) {
	rule := sale.AccessRule{
		Kind: sale.AccessUser, Value: change.User, Access: change.Access,
		By: change.stored().Who, Reason: strings.TrimSpace(change.Reason), Until: change.Until,
	}
	if (change.User == "") == (change.Address == "") {
		return Change{}, &sale.Error{Code: sale.CodeInvalid, Detail: "give either user or address"}
	}
	if change.Address != "" {
		rule.Kind, rule.Value = sale.AccessAddress, change.Address
	}
	if err := rule.Canonical(); err != nil {
		return Change{}, err
	}
	if !rule.Until.IsZero() && !time.Now().Before(rule.Until) {
		return Change{}, &sale.Error{Code: sale.CodeInvalid, Detail: "until is in the past"}
	}
	if rule.Access != sale.AccessLift {
		made, err := a.accessRules(ctx)
		if err != nil {
			return Change{}, err
		}
		known := slices.ContainsFunc(made, func(r sale.AccessRule) bool { return r.Kind == rule.Kind && r.Value == rule.Value })
		if len(made) >= sale.MaxAccessRules && !known {
			return Change{}, &sale.Error{Code: sale.CodeConflict, Detail: fmt.Sprintf("there are %d rules, as many as a gateway holds: lift some, or block a network", len(made))}
		}
	}
	changed, err := a.Ledger.AddAccess(ctx, rule)
	if err != nil {
		return Change{}, err
	}
	what := map[sale.Access]string{sale.AccessBlock: "blocked", sale.AccessAllow: "allowed", sale.AccessLift: "neither blocked nor allowed by operators"}[rule.Access]
	c := Change{Changed: changed, Message: fmt.Sprintf("%s %s is %s", strings.ToLower(string(rule.Kind)), rule.Value, what)}
	if !rule.Until.IsZero() {
		c.Message += " until " + rule.Until.UTC().Format(time.RFC3339)
	}
	if changed {
		c.Message += "; every gateway follows within a second"
	} else {
		c.Message += " already"
	}
	return c, nil
}

// Limits is what is in force in this process. Error: NOT_FOUND in one that is no gateway.
func (a *Admin) Limits(context.Context) (limits.View, error) {
	if a.Limiter == nil {
		return limits.View{}, &sale.Error{Code: sale.CodeNotFound, Detail: "this process answers no shoppers and keeps no limits: ask a gateway"}
	}
	return a.Limiter.View(), nil
}

// Access is Admin.Access, asked of the process.
func (c *Client) Access(ctx context.Context) ([]AccessView, error) {
	var v accessList
	err := c.call(ctx, http.MethodGet, "/access", nil, &v)
	return v.Access, err
}

// SetAccess is Admin.SetAccess, asked of the process.
func (c *Client) SetAccess(ctx context.Context, change AccessChange) (v Change, err error) {
	err = c.call(ctx, http.MethodPost, "/access", change, &v)
	return v, err
}

// Limits is Admin.Limits, asked of the process.
func (c *Client) Limits(ctx context.Context) (v limits.View, err error) {
	err = c.call(ctx, http.MethodGet, "/limits", nil, &v)
	return v, err
}

func limitRoutes(mux *http.ServeMux, s Service) {
	handle(mux, "GET /admin/v1/limits", func(r *http.Request) (any, error) { return s.Limits(r.Context()) })
	handle(mux, "GET /admin/v1/access", func(r *http.Request) (any, error) {
		access, err := s.Access(r.Context())
		return accessList{access}, err
	})
	handle(mux, "POST /admin/v1/access", func(r *http.Request) (any, error) {
		var change AccessChange
		if err := readJSON(r, &change); err != nil {
			return nil, err
		}
		return s.SetAccess(r.Context(), change)
	})
}
