package config_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"flashgate/internal/config"
)

func TestPublicKeys(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "c.yaml", realConfig)
	t.Chdir(dir)
	save := func(kind string, der []byte, err error) string {
		require.NoError(t, err)
		f, err := os.CreateTemp(dir, "*.pem")
		require.NoError(t, err)
		require.NoError(t, pem.Encode(f, &pem.Block{Type: kind, Bytes: der}))
		require.NoError(t, f.Close())
		return filepath.Base(f.Name())
	}
	public := func(key any) string {
		der, err := x509.MarshalPKIXPublicKey(key)
		return save("PUBLIC KEY", der, err)
	}
	ed, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	good, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	load := func(list string) (*config.Config, error) {
		text := strings.Replace(realConfig, "secret: {env: FLASHGATE_TEST_J}", "public_keys: ["+list+"]", 1)
		require.NoError(t, os.WriteFile("configs/c.yaml", []byte(text), 0o600))
		return config.Load("configs/c.yaml")
	}

	c, err2 := load(public(ed) + ", " + public(good.Public()) + ", " + save("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&good.PublicKey), nil))
	require.NoError(t, err2)
	o, err2 := c.TokenOptions()
	require.NoError(t, err2)
	require.Len(t, o.PublicKeys, 3)
	require.Empty(t, o.Secret)
	_, err2 = c.JWTSecret()
	require.ErrorContains(t, err2, "by public key")

	require.NoError(t, os.WriteFile("text.pem", []byte("text"), 0o600))
	for file, want := range map[string]string{
		save("PRIVATE KEY", pkcs8, err):    "is a PRIVATE key",
		public(curve.Public()):             "want an Ed25519 or an RSA public key",
		public(small.Public()):             "RSA of 1024 bits: want 2048 or more",
		save("CERTIFICATE", []byte{}, nil): "holds a CERTIFICATE: want a PUBLIC KEY",
		save("PUBLIC KEY", []byte{1}, nil): "asn1",
		"text.pem":                         "not a PEM file",
	} {
		_, err := load(file)
		require.ErrorContains(t, err, "c.yaml:7: jwt.public_keys: "+file)
		require.ErrorContains(t, err, want)
	}
}
