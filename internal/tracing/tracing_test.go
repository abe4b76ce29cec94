package tracing

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// recorded is a Tracer whose spans are kept.
func recorded(t *testing.T, sampled uint64) (*Tracer, *tracetest.SpanRecorder) {
	r := tracetest.NewSpanRecorder()
	p := sdk.NewTracerProvider(sdk.WithSampler(sdk.AlwaysSample()), sdk.WithSpanProcessor(r))
	tr := &Tracer{provider: p, tracer: p.Tracer(scope), sampled: sampled}
	t.Cleanup(func() { require.NoError(t, tr.Close(context.Background())) })
	return tr, r
}

const remote = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestARequestIsFollowedThroughTheBus(t *testing.T) {
	tr, r := recorded(t, 1<<63)
	first, second := tr.Serve([]byte(remote), "POST purchases"), tr.Serve([]byte("rubbish"), "POST purchases")
	ctx, batch := Join(context.Background(), "batch", []trace.Span{first, second})
	inStep, step := Child(ctx, "half")
	property := Parent(inStep)
	require.Len(t, property, propertyBytes)
	End(step, errors.New("no broker"))
	batch.End()
	first.End()
	second.End()

	ctx, persist := tr.Consume(context.Background(), "persist", []string{"", "rubbish", property, remote})
	_, settle := Child(ctx, "settle")
	End(settle, nil)
	End(persist, nil)

	by := map[string]sdk.ReadOnlySpan{}
	for _, s := range r.Ended() {
		by[s.Name()] = s
	}
	require.Len(t, r.Ended(), 6)
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	for _, name := range []string{"batch", "half", "persist", "settle"} {
		require.Equal(t, id, by[name].SpanContext().TraceID().String(), name)
	}
	require.Equal(t, by["batch"].SpanContext().SpanID(), by["half"].Parent().SpanID())
	require.Equal(t, by["half"].SpanContext().SpanID(), by["persist"].Parent().SpanID(), "over the bus")
	require.Len(t, by["batch"].Links(), 1, "the other request")
	require.Len(t, by["persist"].Links(), 1, "the other batch")
	require.Equal(t, "no broker", by["half"].Status().Description)
	require.NotEqual(t, id, second.SpanContext().TraceID().String())
}

func TestNothingIsMadeOfWhatIsNotFollowed(t *testing.T) {
	var off *Tracer
	require.False(t, off.Sample())
	require.NoError(t, off.Close(context.Background()))
	ctx, span := off.Consume(context.Background(), "persist", []string{remote})
	require.False(t, span.IsRecording())
	require.Empty(t, Parent(ctx))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if off.Sample() {
			t.Error("sampled")
		}
		ctx, span := Join(context.Background(), "batch", nil)
		_, child := Child(ctx, "half")
		End(child, nil)
		span.End()
		if Parent(ctx) != "" {
			t.Error("a parent")
		}
	}))

	none, _ := recorded(t, 0)
	all, _ := recorded(t, ^uint64(0))
	for range 1000 {
		require.False(t, none.Sample())
		require.True(t, all.Sample())
	}
	ctx, span = none.Consume(context.Background(), "persist", []string{"", "rubbish"})
	require.False(t, span.IsRecording())
	require.Empty(t, Parent(ctx))
}

// BenchmarkOff is all that one purchase, alone in its batch, does for tracing while it is
// off.
func BenchmarkOff(b *testing.B) {
	var off *Tracer
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if off.Sample() {
			b.Fatal("sampled")
		}
		batch, span := Join(ctx, "batch", nil)
		for _, step := range []string{"reserve", "half", "confirm"} {
			_, child := Child(batch, step)
			End(child, nil)
		}
		if Parent(batch) != "" {
			b.Fatal("a parent")
		}
		span.End()
	}
}

func TestLogsCarryTheIDs(t *testing.T) {
	tr, _ := recorded(t, 1)
	span := tr.Serve([]byte(remote), "POST purchases")
	var out bytes.Buffer
	log := slog.New(LogIDs(slog.NewJSONHandler(&out, nil))).With("sale", "s")
	log.InfoContext(trace.ContextWithSpan(context.Background(), span), "followed")
	log.Info("not followed")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Contains(t, lines[0], `"sale":"s","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","span_id":"`+span.SpanContext().SpanID().String()+`"`)
	require.NotContains(t, lines[1], "trace_id")
}

func FuzzParse(f *testing.F) {
	f.Add(remote)
	f.Add("00-00000000000000000000000000000000-0000000000000000-01")
	f.Fuzz(func(t *testing.T, text string) {
		c := parse(text)
		if c.IsValid() && len(text) != propertyBytes {
			t.Fatal(text)
		}
	})
}
