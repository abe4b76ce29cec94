package operator

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"flashgate/internal/ledger"
	"flashgate/internal/sale"
	"flashgate/reconciler"
)

// failure is the body of every refused admin call.
type failure struct {
	Code   sale.Code `json:"code"`
	Detail string    `json:"detail"`
}

var statuses = map[sale.Code]int{
	sale.CodeInvalid:       http.StatusBadRequest,
	sale.CodeTooLarge:      http.StatusRequestEntityTooLarge,
	sale.CodeSaleNotFound:  http.StatusNotFound,
	sale.CodeOrderNotFound: http.StatusNotFound,
	sale.CodeNotFound:      http.StatusNotFound,
	sale.CodeConflict:      http.StatusConflict,
}

// adminRoutes serves a Service under /admin/v1; Client is its other end.
func adminRoutes(mux *http.ServeMux, s Service) {
	handle(mux, "POST /admin/v1/sales", func(r *http.Request) (any, error) {
		var spec SaleSpec
		if err := readJSON(r, &spec); err != nil {
			return nil, err
		}
		return s.CreateSale(r.Context(), spec)
	})
	handle(mux, "GET /admin/v1/sales", func(r *http.Request) (any, error) {
		sales, err := s.Sales(r.Context())
		return saleList{sales}, err
	})
	handle(mux, "GET /admin/v1/sales/{id}", func(r *http.Request) (any, error) { return s.Sale(r.Context(), r.PathValue("id")) })
	handle(mux, "POST /admin/v1/sales/{id}/open", func(r *http.Request) (any, error) { return s.OpenSale(r.Context(), r.PathValue("id")) })
	handle(mux, "POST /admin/v1/sales/{id}/pause", func(r *http.Request) (any, error) { return s.PauseSale(r.Context(), r.PathValue("id")) })
	handle(mux, "POST /admin/v1/sales/{id}/load", func(r *http.Request) (any, error) { return s.LoadSale(r.Context(), r.PathValue("id")) })
	handle(mux, "POST /admin/v1/sales/{id}/restock", func(r *http.Request) (any, error) {
		var q Restock
		if err := readJSON(r, &q); err != nil {
			return nil, err
		}
		return s.Restock(r.Context(), r.PathValue("id"), q)
	})
	handle(mux, "POST /admin/v1/reconcile", func(r *http.Request) (any, error) {
		var q reconciler.Query
		if err := readJSON(r, &q); err != nil {
			return nil, err
		}
		return s.Reconcile(r.Context(), q)
	})
	handle(mux, "GET /admin/v1/audit", func(r *http.Request) (any, error) {
		return s.Audit(r.Context(), r.URL.Query().Get("sale_id"))
	})
	handle(mux, "GET /admin/v1/reconcile/reports", func(r *http.Request) (any, error) {
		limit := 0
		if text := r.URL.Query().Get("limit"); text != "" {
			var err error
			if limit, err = strconv.Atoi(text); err != nil {
				return nil, &sale.Error{Code: sale.CodeInvalid, Detail: "limit is not a number"}
			}
		}
		reports, err := s.Reports(r.Context(), r.URL.Query().Get("sale_id"), limit)
		return reportList{reports}, err
	})
	handle(mux, "GET /admin/v1/reconcile/reports/{id}", func(r *http.Request) (any, error) {
		return about(r, s.Report)
	})
	handle(mux, "GET /admin/v1/tasks", func(r *http.Request) (any, error) {
		state := ledger.TaskState(r.URL.Query().Get("state"))
		switch state {
		case "", ledger.TaskOpen, ledger.TaskDone, ledger.TaskStuck, ledger.TaskAbandoned:
		default:
			return nil, &sale.Error{Code: sale.CodeInvalid, Detail: "state: want OPEN, STUCK, ABANDONED or DONE"}
		}
		tasks, err := s.Tasks(r.Context(), state)
		return taskList{tasks}, err
	})
	handle(mux, "POST /admin/v1/tasks/{id}/retry", func(r *http.Request) (any, error) {
		return about(r, s.RetryTask)
	})
	handle(mux, "POST /admin/v1/tasks/{id}/abandon", func(r *http.Request) (any, error) {
		var d Decision
		if err := readJSON(r, &d); err != nil {
			return nil, err
		}
		return about(r, func(ctx context.Context, id int64) (Change, error) { return s.AbandonTask(ctx, id, d) })
	})
	handle(mux, "GET /admin/v1/dead-batches", func(r *http.Request) (any, error) {
		dead, err := s.DeadBatches(r.Context())
		return deadList{dead}, err
	})
	handle(mux, "GET /admin/v1/dead-batches/{id}", func(r *http.Request) (any, error) {
		return about(r, s.DeadBatch)
	})
	handle(mux, "POST /admin/v1/dead-batches/{id}/retry", func(r *http.Request) (any, error) {
		var q Replay
		if err := readJSON(r, &q); err != nil {
			return nil, err
		}
		return about(r, func(ctx context.Context, id int64) (Change, error) { return s.ReplayDeadBatch(ctx, id, q) })
	})
	limitRoutes(mux, s)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusNotFound, failure{sale.CodeNotFound, r.Method + " " + r.URL.Path + " is not of this port"})
	})
}

type saleList struct {
	Sales []SaleView `json:"sales"`
}

type reportList struct {
	Reports []ledger.ReconcileReport `json:"reports"`
}

type taskList struct {
	Tasks []TaskView `json:"tasks"`
}

type deadList struct {
	DeadBatches []DeadBatchView `json:"dead_batches"`
}

func handle(mux *http.ServeMux, pattern string, do func(*http.Request) (any, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		v, err := do(r)
		if err == nil {
			writeJSON(w, http.StatusOK, v)
			return
		}
		f := failure{Code: sale.CodeOf(err), Detail: err.Error()}
		var known *sale.Error
		if errors.As(err, &known) {
			f.Detail = known.Detail
		}
		status, ok := statuses[f.Code]
		if !ok {
			// Operators may read what went wrong inside, unlike shoppers.
			status = http.StatusInternalServerError
		}
		writeJSON(w, status, f)
	})
}

// about asks for what the path names by a number.
func about[T any](r *http.Request, ask func(ctx context.Context, id int64) (T, error)) (any, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return nil, &sale.Error{Code: sale.CodeInvalid, Detail: "the id is not a number"}
	}
	return ask(r.Context(), id)
}
