// A CUDA device without a GPU, for tensors without data (`mova_engine.rehearsal`): torch's CPU build asks the device's
// guard and hooks for streams and events whenever autograd passes a "cuda" tensor, and aborts where there are none.
// Nothing here computes: an operation on real memory still fails, by its missing kernel.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

thread_local c10::DeviceIndex current = 0;

struct FakeCudaGuard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  using Device = c10::Device;
  using Stream = c10::Stream;

  static Device device() {
    return Device(c10::DeviceType::CUDA, current);
  }
  Device exchangeDevice(Device next) const override {
    const Device before = device();
    setDevice(next);
    return before;
  }
  Device getDevice() const override {
    return device();
  }
  void setDevice(Device next) const override {
    uncheckedSetDevice(next);
  }
  void uncheckedSetDevice(Device next) const noexcept override {
    if (next.has_index()) {
      current = next.index();
    }
  }
  // Every device has one stream, on which all work is done as soon as it is queued.
  static Stream stream(Device of) {
    return Stream(Stream::DEFAULT, of.has_index() ? of : device());
  }
  Stream getStream(Device of) const noexcept override {
    return stream(of);
  }
  Stream getDefaultStream(Device of) const override {
    return stream(of);
  }
  Stream getStreamFromGlobalPool(Device of, bool) const override {
    return stream(of);
  }
  Stream getNewStream(Device of, int) const override {
    return stream(of);
  }
  Stream exchangeStream(Stream next) const noexcept override {
    return stream(next.device());
  }
  void record(void** event, const Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = const_cast<FakeCudaGuard*>(this);
  }
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override {
    return true;
  }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

// Under the name by which torch looks for them.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasCUDA() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  c10::DeviceIndex deviceCount() const override {
    return 1;
  }
  c10::DeviceIndex current_device() const override {
    return current;
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return current;
  }
  int getNumGPUs() const override {
    return 1;
  }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

}  // namespace

C10_REGISTER_GUARD_IMPL(CUDA, FakeCudaGuard);

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, CUDAHooks)
}  // namespace at
