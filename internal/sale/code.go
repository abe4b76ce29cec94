package sale

import "errors"

// Code names a refusal or a failure, the same in the API, logs and metrics.
type Code string

// The codes a shopper can meet. One map in gateway/ turns them into HTTP.
const (
	CodeInvalid         Code = "INVALID_REQUEST"
	CodeUnauthenticated Code = "UNAUTHENTICATED"
	CodeBlocked         Code = "BLOCKED"          // an operator blocked the user or the address
	CodeTicket          Code = "TICKET_REQUIRED"  // a purchase without a good ticket
	CodeChallenge       Code = "CHALLENGE_FAILED" // no ticket without it
	CodeSaleNotFound    Code = "SALE_NOT_FOUND"
	CodeOrderNotFound   Code = "ORDER_NOT_FOUND"
	CodeNotFound        Code = "NOT_FOUND"
	CodeMethod          Code = "METHOD_NOT_ALLOWED"
	CodeTooLarge        Code = "BODY_TOO_LARGE"
	CodeMediaType       Code = "UNSUPPORTED_MEDIA_TYPE"
	CodeKeyReused       Code = "IDEMPOTENCY_KEY_REUSED"
	CodeSoldOut         Code = "SOLD_OUT"
	CodeLimitReached    Code = "LIMIT_REACHED"
	CodeNotStarted      Code = "NOT_STARTED"
	CodeEnded           Code = "ENDED"
	CodePaused          Code = "PAUSED"
	CodeRateLimited     Code = "RATE_LIMITED"
	CodeUnavailable     Code = "UNAVAILABLE"     // nothing was reserved
	CodeOutcomeUnknown  Code = "OUTCOME_UNKNOWN" // it may have been: ask again with the same key
	CodeInternal        Code = "INTERNAL"
	CodeConflict        Code = "CONFLICT" // operators: the change contradicts what is stored
)

// Error is the one error type that carries a Code outwards. Detail is for the
// caller to read and holds no secret and nothing of another user.
type Error struct {
	Code   Code
	Detail string
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return string(e.Code)
	}
	return string(e.Code) + ": " + e.Detail
}

// CodeOf is the code err carries, or INTERNAL.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
