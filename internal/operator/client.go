package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"flashgate/internal/audit"
	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/reconciler"
)

// Client is the Service of a running process, asked through its operators' port.
type Client struct {
	Base  string // http://host:port
	Token string
	HTTP  *http.Client // nil = http.DefaultClient
}

var _ Service = (*Client)(nil)

// call sends a request and reads the answer into out; a refusal comes back as the
// sale.Error that the process gave.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, c.Base+"/admin/v1"+path, &body)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+c.Token)
	r.Header.Set("Content-Type", "application/json")
	h := c.HTTP
	if h == nil {
		h = http.DefaultClient
	}
	resp, err := h.Do(r)
	if err != nil {
		return fmt.Errorf("the running flashgate does not answer on its operators' port: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return json.NewDecoder(resp.Body).Decode(out)
	}
	var f failure
	if err := json.NewDecoder(resp.Body).Decode(&f); err != nil || f.Code == "" {
		return fmt.Errorf("operators' port: %s", resp.Status)
	}
	return &sale.Error{Code: f.Code, Detail: f.Detail}
}

func salePath(id, action string) string { return "/sales/" + url.PathEscape(id) + action }

// CreateSale is Admin.CreateSale, asked of the process.
func (c *Client) CreateSale(ctx context.Context, spec SaleSpec) (v Change, err error) {
	err = c.call(ctx, http.MethodPost, "/sales", spec, &v)
	return v, err
}

// Sales is Admin.Sales, asked of the process.
func (c *Client) Sales(ctx context.Context) ([]SaleView, error) {
	var v saleList
	err := c.call(ctx, http.MethodGet, "/sales", nil, &v)
	return v.Sales, err
}

// Sale is Admin.Sale, asked of the process.
func (c *Client) Sale(ctx context.Context, id string) (v SaleView, err error) {
	err = c.call(ctx, http.MethodGet, salePath(id, ""), nil, &v)
	return v, err
}

// OpenSale is Admin.OpenSale, asked of the process.
func (c *Client) OpenSale(ctx context.Context, id string) (v Change, err error) {
	err = c.call(ctx, http.MethodPost, salePath(id, "/open"), nil, &v)
	return v, err
}

// PauseSale is Admin.PauseSale, asked of the process.
func (c *Client) PauseSale(ctx context.Context, id string) (v Change, err error) {
	err = c.call(ctx, http.MethodPost, salePath(id, "/pause"), nil, &v)
	return v, err
}

// LoadSale is Admin.LoadSale, asked of the process.
func (c *Client) LoadSale(ctx context.Context, id string) (v Change, err error) {
	err = c.call(ctx, http.MethodPost, salePath(id, "/load"), nil, &v)
	return v, err
}

// Restock is Admin.Restock, asked of the process.
func (c *Client) Restock(ctx context.Context, id string, r Restock) (v Change, err error) {
	err = c.call(ctx, http.MethodPost, salePath(id, "/restock"), r, &v)
	return v, err
}

// Reconcile is Admin.Reconcile, asked of the process.
func (c *Client) Reconcile(ctx context.Context, q reconciler.Query) (v reconciler.Report, err error) {
	err = c.call(ctx, http.MethodPost, "/reconcile", q, &v)
	return v, err
}

// Audit is Admin.Audit, asked of the process.
func (c *Client) Audit(ctx context.Context, saleID string) (v audit.Report, err error) {
	err = c.call(ctx, http.MethodGet, "/audit?sale_id="+url.QueryEscape(saleID), nil, &v)
	return v, err
}

// Reports is Admin.Reports, asked of the process.
func (c *Client) Reports(ctx context.Context, saleID string, limit int) ([]ledger.ReconcileReport, error) {
	var v reportList
	q := url.Values{"sale_id": {saleID}, "limit": {strconv.Itoa(limit)}}
	err := c.call(ctx, http.MethodGet, "/reconcile/reports?"+q.Encode(), nil, &v)
	return v.Reports, err
}

// Report is Admin.Report, asked of the process.
func (c *Client) Report(ctx context.Context, id int64) (v ledger.ReconcileReport, err error) {
	err = c.call(ctx, http.MethodGet, numbered("/reconcile/reports/", id, ""), nil, &v)
	return v, err
}

func numbered(path string, id int64, action string) string {
	return path + strconv.FormatInt(id, 10) + action
}

// Tasks is Admin.Tasks, asked of the process.
func (c *Client) Tasks(ctx context.Context, state ledger.TaskState) ([]TaskView, error) {
	var v taskList
	err := c.call(ctx, http.MethodGet, "/tasks?state="+url.QueryEscape(string(state)), nil, &v)
	return v.Tasks, err
}

// RetryTask is Admin.RetryTask, asked of the process.
func (c *Client) RetryTask(ctx context.Context, id int64) (v Change, err error) {
	err = c.call(ctx, http.MethodPost, numbered("/tasks/", id, "/retry"), nil, &v)
	return v, err
}

// AbandonTask is Admin.AbandonTask, asked of the process.
func (c *Client) AbandonTask(ctx context.Context, id int64, d Decision) (v Change, err error) {
	err = c.call(ctx, http.MethodPost, numbered("/tasks/", id, "/abandon"), d, &v)
	return v, err
}

// DeadBatches is Admin.DeadBatches, asked of the process.
func (c *Client) DeadBatches(ctx context.Context) ([]DeadBatchView, error) {
	var v deadList
	err := c.call(ctx, http.MethodGet, "/dead-batches", nil, &v)
	return v.DeadBatches, err
}

// DeadBatch is Admin.DeadBatch, asked of the process.
func (c *Client) DeadBatch(ctx context.Context, id int64) (v DeadBatchView, err error) {
	err = c.call(ctx, http.MethodGet, numbered("/dead-batches/", id, ""), nil, &v)
	return v, err
}

// ReplayDeadBatch is Admin.ReplayDeadBatch, asked of the process.
func (c *Client) ReplayDeadBatch(ctx context.Context, id int64, r Replay) (v Change, err error) {
	err = c.call(ctx, http.MethodPost, numbered("/dead-batches/", id, "/retry"), r, &v)
	return v, err
}
