// Builds kustomizations and decodes each object into the types of Kubernetes and of the Prometheus operator. A field that a type
// does not have, a field that is written twice, a value of another type and an unknown kind are errors.
//
//	manifests DIRECTORY...
//
// It prints the number of objects of each directory. It reaches no cluster.
package main

import (
	"fmt"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

func decoder() (runtime.Decoder, error) {
	scheme := runtime.NewScheme()
	groups := []func(*runtime.Scheme) error{
		apps.AddToScheme, autoscaling.AddToScheme, batch.AddToScheme, core.AddToScheme, networking.AddToScheme,
		policy.AddToScheme, monitoring.AddToScheme,
	}
	for _, add := range groups {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer(), nil
}

func check(decoder runtime.Decoder, directory string) error {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), directory)
	if err != nil {
		return err
	}
	if built.Size() == 0 {
		return fmt.Errorf("%s has no object", directory)
	}
	for _, object := range built.Resources() {
		text, err := object.AsYAML()
		if err != nil {
			return err
		}
		if _, _, err := decoder.Decode(text, nil, nil); err != nil {
			return fmt.Errorf("%s: %s: %w", directory, object.CurId(), err)
		}
	}
	fmt.Printf("%s: %d objects\n", directory, built.Size())
	return nil
}

func main() {
	decoder, err := decoder()
	failed := err != nil
	if failed {
		fmt.Fprintln(os.Stderr, err)
	}
	for _, directory := range os.Args[1:] {
		if err := check(decoder, directory); err != nil {
			fmt.Fprintln(os.Stderr, err)
			failed = true
		}
	}
	if failed || len(os.Args) == 1 {
		os.Exit(1)
	}
}
