# `make help` lists what there is to run.

GOLANGCI_VERSION    := v2.15.0
GOVULNCHECK_VERSION := v1.8.0
K6_VERSION          := v1.8.1
VEGETA_VERSION      := $(shell awk '/vegeta\/v12 v/ { print $$2 }' bench/vegeta/tool.mod)

# Tools are built here, once a version.
TOOLS       := .run/bin
GOLANGCI    := $(TOOLS)/golangci-lint-$(GOLANGCI_VERSION)
GOVULNCHECK := $(TOOLS)/govulncheck-$(GOVULNCHECK_VERSION)
K6          := $(TOOLS)/k6-$(K6_VERSION)
VEGETA      := $(TOOLS)/vegeta-$(VEGETA_VERSION)

LOCAL := go run ./deploy/local

.DEFAULT_GOAL := help
.PHONY: help run test check fmt-check vet lint vuln race bench bench-scale bench-k6 bench-vegeta profile e2e up down install

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## sell a demo sale on embedded engines; data in ./data
	go run .

test: install ## install, start and stop the real engines, and run every test on them
	$(LOCAL) test

check: fmt-check vet lint vuln ## format, vet, lint and known vulnerabilities

# The RocketMQ client has races of its own, named in the file.
race: install ## make test under the race detector
	GORACE=suppressions=$(CURDIR)/internal/bus/race.suppressions $(LOCAL) test -- -race -timeout=20m ./...

# All of them run on the real engines if those are up, or else on embedded ones.
bench: ## every load scenario and baseline, each audited, and their ratios; bench/out/report.html
	go run ./bench all --start auto

bench-scale: ## how it scales: daemons, sales, connections, stock, a million buyers
	go run ./bench scale --start auto

bench-k6: $(K6) ## the k6 scripts (opening second, storm, soak), each with an audit
	go run ./bench k6 opening --k6 $(K6)
	go run ./bench k6 storm --k6 $(K6)
	go run ./bench k6 soak --k6 $(K6)

bench-vegeta: $(VEGETA) ## a vegeta attack with a plot, and an audit
	go run ./bench vegeta --vegeta $(VEGETA)

profile: ## where the processor goes under load, for the compiler: deploy/flashgate.pgo
	go run ./bench profile --start auto

# SEED= plays one round of faults again, ROUNDS= so many, KINDS= draws from some kinds only.
# One package at a time, or nothing is printed before all is over.
e2e: install ## the whole program on real engines while all goes wrong; SEED=, ROUNDS= play rounds of faults
ifeq ($(SEED)$(ROUNDS)$(KINDS),)
	$(LOCAL) test -- -v -p=1 -run E2E ./e2e/...
else
	go test -v -count=1 -timeout=8h -run 'TestE2EFaults$$' ./e2e/faults
endif

up: install ## start the real engines for hand use with configs/local.yaml; data in ./.run
	$(LOCAL) up

down: ## stop them; the data stays
	$(LOCAL) down

install:
	@deploy/local/install.sh

fmt-check:
	@files=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	if [ -n "$$files" ]; then echo "gofmt would change:"; echo "$$files"; exit 1; fi

vet:
	go vet ./...
	go vet -tags failpoints,measure ./internal/failpoint ./e2e/...

lint: $(GOLANGCI)
	$(GOLANGCI) run

# Its database may be out of reach, which is no fault of this code.
vuln: $(GOVULNCHECK)
	@if out=$$($(GOVULNCHECK) ./... 2>&1); then echo "$$out"; \
	else case "$$out" in \
	  *"fetching vulnerabilities"*) echo "govulncheck: its database is out of reach here, nothing was checked" ;; \
	  *) echo "$$out"; exit 1 ;; \
	esac; fi

# Built aside and renamed: a tool that exists is whole.
$(GOLANGCI):
	GOBIN=$(abspath $(TOOLS))/partial go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(TOOLS)/partial/golangci-lint $@

$(GOVULNCHECK):
	GOBIN=$(abspath $(TOOLS))/partial go install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
	mv $(TOOLS)/partial/govulncheck $@

$(K6):
	GOBIN=$(abspath $(TOOLS))/partial go install go.k6.io/k6@$(K6_VERSION)
	mv $(TOOLS)/partial/k6 $@

# Its dependencies are none of flashgate's: a module file of its own names the version.
$(VEGETA):
	go build -modfile=bench/vegeta/tool.mod -o $(TOOLS)/partial/vegeta github.com/tsenart/vegeta/v12
	mv $(TOOLS)/partial/vegeta $@
