// Package tracing follows a sampled request through the program with OpenTelemetry: from
// the HTTP edge through the batch that it travels in, over the bus, into the ledger.
// Without a Tracer, and for requests that are not sampled, nothing is made or sent.
package tracing

import (
	"context"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/url"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Property is the header of a request, and the property of a message, in which the
// context travels, as W3C Trace Context writes it.
const Property = "traceparent"

const (
	// scope names the spans' maker.
	scope = "flashgate"
	// spansQueued bounds the spans that wait to be sent; more are dropped.
	spansQueued = 8192
	// spansSent is how many go in one request.
	spansSent = 512
	// sendInterval is how long a span waits for company.
	sendInterval = 2 * time.Second
	// linksMax bounds the requests and batches that one span names beside its parent.
	linksMax = 32
	// propertyBytes is the length of a traceparent of version 00.
	propertyBytes = 55
)

// Options say where spans go.
type Options struct {
	Endpoint string        // URL of an OTLP/HTTP collector, such as http://127.0.0.1:4318
	Sample   float64       // part of the requests that are followed, 0 to 1
	Timeout  time.Duration // of sending; while the collector is away spans are dropped
	Service  string        // gateway, worker, reconciler, embedded
	Version  string
	Log      *slog.Logger
}

// Tracer makes spans of sampled requests. A nil one makes none: all methods work.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
	sampled  uint64 // of 2⁶⁴ − 1
}

// Start makes a Tracer. It does not wait for the collector.
func Start(ctx context.Context, o Options) (*Tracer, error) {
	at, err := url.Parse(o.Endpoint)
	if err != nil {
		return nil, err
	}
	if strings.Trim(at.Path, "/") == "" {
		at.Path = "/v1/traces" // where every collector has them
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(at.String()), otlptracehttp.WithTimeout(o.Timeout),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: false}))
	if err != nil {
		return nil, err
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { o.Log.Warn("spans are not sent", "err", err) }))
	provider := sdk.NewTracerProvider(
		// What is to be followed is decided before a span is made.
		sdk.WithSampler(sdk.AlwaysSample()),
		sdk.WithBatcher(exporter, sdk.WithMaxQueueSize(spansQueued), sdk.WithMaxExportBatchSize(spansSent), sdk.WithBatchTimeout(sendInterval)),
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.namespace", scope), attribute.String("service.name", scope+"-"+o.Service),
			attribute.String("service.version", o.Version))),
	)
	t := &Tracer{provider: provider, tracer: provider.Tracer(scope), sampled: math.MaxUint64}
	if o.Sample < 1 {
		t.sampled = uint64(o.Sample * math.MaxUint64)
	}
	return t, nil
}

// Close sends what is left.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// Sample says whether the next request is to be followed. A caller does not decide that
// by its header: whoever pays for the spans does.
func (t *Tracer) Sample() bool {
	return t != nil && (t.sampled == math.MaxUint64 || rand.Uint64() < t.sampled)
}

// Serve begins the span of a request that is followed; parent is its header, if any.
func (t *Tracer) Serve(parent []byte, name string) trace.Span {
	ctx := context.Background()
	if remote := parse(string(parent)); remote.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, remote)
	}
	_, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
	return span
}

// Consume begins a span for work on messages: a child of the first that is followed,
// linked to the others. Without one there is no span.
func (t *Tracer) Consume(ctx context.Context, name string, parents []string) (context.Context, trace.Span) {
	if t == nil {
		return ctx, none
	}
	var contexts []trace.SpanContext
	for _, p := range parents {
		if remote := parse(p); remote.IsValid() && len(contexts) <= linksMax {
			contexts = append(contexts, remote)
		}
	}
	if len(contexts) == 0 {
		return ctx, none
	}
	ctx = trace.ContextWithRemoteSpanContext(ctx, contexts[0])
	return t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithLinks(links(contexts[1:])...))
}

// none is the span of what is not followed.
var none = trace.SpanFromContext(context.Background())

// Join begins a span for work that requests share: a child of the first, linked to the
// others. With none it is Child.
func Join(ctx context.Context, name string, requests []trace.Span) (context.Context, trace.Span) {
	if len(requests) == 0 {
		return Child(ctx, name)
	}
	var others []trace.SpanContext
	for _, s := range requests[1:min(len(requests), linksMax)] {
		others = append(others, s.SpanContext())
	}
	ctx = trace.ContextWithSpan(ctx, requests[0])
	return requests[0].TracerProvider().Tracer(scope).Start(ctx, name, trace.WithLinks(links(others)...))
}

func links(contexts []trace.SpanContext) []trace.Link {
	list := make([]trace.Link, len(contexts))
	for i, c := range contexts {
		list[i].SpanContext = c
	}
	return list
}

// Child begins a span within that of ctx; without one there is none.
func Child(ctx context.Context, name string) (context.Context, trace.Span) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return ctx, none
	}
	return span.TracerProvider().Tracer(scope).Start(ctx, name)
}

// End ends a span with what went wrong, if anything did.
func End(span trace.Span, err error) {
	if !span.IsRecording() {
		return
	}
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// Parent is the traceparent of ctx's span, for a message; "" without one.
func Parent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier[Property]
}

// parse reads a traceparent; what is none is an invalid SpanContext.
func parse(text string) trace.SpanContext {
	if len(text) != propertyBytes {
		return trace.SpanContext{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{Property: text})
	return trace.SpanContextFromContext(ctx)
}

// handler adds the ids of ctx's span to what is logged.
type handler struct{ slog.Handler }

// LogIDs makes a handler that adds trace_id and span_id to the records of what is
// followed.
func LogIDs(h slog.Handler) slog.Handler { return handler{h} }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if c := trace.SpanContextFromContext(ctx); c.IsValid() {
		r.AddAttrs(slog.String("trace_id", c.TraceID().String()), slog.String("span_id", c.SpanID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs)}
}
func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
